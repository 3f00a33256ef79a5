"""What an attached LocalSGD costs the ranks of an island: memory of a sync, and step time while none is due.

    python -m benchmarks.islands [--preset 30m] [--part memory|step] [--kind fsdp ...]

2 islands x 2 ranks, real processes over gloo, CPU. Memory: resident bytes of a rank at their peak over three syncs,
less those before LocalSGD was there (training steps had been taken), less the state that the method itself keeps
(global weights, outer momentum, error feedback): what is left is what a sync adds, by the rank's shard in fp32.
Step time: two equal islands in the same process, one with an idle LocalSGD, take steps in turn; medians.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.common import RESULTS, ROOT, write_result
from benchmarks.tables import islands_table
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4
from lowcomm.config import RunConfig
from lowcomm.data import DataConfig
from lowcomm.doctor.host import free_ports
from lowcomm.island import InnerConfig, IslandConfig, Mesh, PlainIsland
from lowcomm.island_kinds import build_island
from lowcomm.model import ModelConfig, build_model
from lowcomm.outer import Nesterov
from lowcomm.run.run_dir import git_commit
from lowcomm.sync import LocalSGD
from lowcomm.transport import Collective, Simulated

KINDS = ("ddp", "fsdp", "zero1", "zero2", "zero3")
CODECS: dict[str, Codec] = {"fp32": Fp32(), "int4 with error feedback": ErrorFeedback(codec=Int4())}
BATCH, SEQ, VOCAB = 4, 64, 260


def build(kind: str, preset: str, mesh: Mesh) -> PlainIsland:
    """This rank's part of an island."""
    config = RunConfig(
        islands=2,
        steps=100_000,
        device="cpu",
        island=IslandConfig(kind=kind, size=2),  # pyright: ignore[reportArgumentType]
        data=DataConfig(batch_size=BATCH, seq_len=SEQ),
        model=ModelConfig(preset=preset),  # pyright: ignore[reportArgumentType]
        inner=InnerConfig(),
    )
    model = build_model(config.model, vocab_size=VOCAB, max_tokens=SEQ, seed=0, eos_id=256)
    return build_island(config, model, dist.get_rank() // 2, False, mesh)


def attach(island: PlainIsland, mesh: Mesh, codec: Codec) -> LocalSGD:
    """A sync that is never due by itself."""
    return LocalSGD(
        island.model,
        island.inner,
        every=10**9,
        island=island.part,
        outer=Nesterov(lr=0.7, momentum=0.9),
        codec=codec,
        transport=Collective(mesh.peers, beside=mesh.beside),
    )


def train(island: PlainIsland, step: int) -> float:
    """Seconds of one inner step."""
    rows = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=torch.Generator().manual_seed(step))
    start = time.perf_counter()
    island.backward([(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())])
    island.update(step)
    return time.perf_counter() - start


def resident_bytes(field: str) -> int:
    """VmRSS, or VmHWM: its peak since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field)))


def forget_peak() -> None:
    """Start VmHWM anew, without what the heap keeps of freed tensors, which a sync would seem to get for nothing."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def compile_codec(codec: Codec) -> None:
    """Sync a small model with it: compilers and connections take memory once, whatever the size of the model."""
    models = [nn.Linear(512, 512) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    inners = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    sync = LocalSGD(models, inners, every=10**9, codec=codec, transport=Simulated(2))
    for _ in range(2):
        for replica in sync.replicas:
            replica.tokens += 1
        sync.sync((0,))


def memory(kind: str, preset: str, codec: str, mesh: Mesh) -> dict[str, Any]:
    """Bytes that three syncs add to this rank at their peak."""
    compile_codec(CODECS[codec])
    island = build(kind, preset, mesh)
    for step in range(2):
        train(island, step)
    forget_peak()
    before = resident_bytes("VmRSS")
    sync = attach(island, mesh, CODECS[codec])
    held = sync.replicas[0].held
    for _ in range(3):
        with torch.no_grad():
            for tensor in held.values():
                tensor.mul_(1.001)
        sync.replicas[0].tokens += 1
        sync.sync((0,))
    peak = resident_bytes("VmHWM") - before
    (fragment,) = sync.state.fragments
    outer = [
        t
        for state in sync.state.anchors[0][0].optimizer.state.values()
        for t in state.values()
        if isinstance(t, Tensor)
    ]
    feedback = [t for t in sync.state.codec_states[0][0].values() if isinstance(t, Tensor)]
    kept = 4 * fragment.size + sum(t.numel() * t.element_size() for t in (*outer, *feedback))
    shard = 4 * fragment.numel
    return {
        "shard_bytes": shard,
        "state_of_shard": kept / shard,
        "sync_of_shard": (peak - kept) / shard,
        "total_of_shard": peak / shard,
    }


def step_time(kind: str, preset: str, mesh: Mesh, turns: int) -> dict[str, Any]:
    """Step with an idle LocalSGD over the same without one."""
    bare, attached = build(kind, preset, mesh), build(kind, preset, mesh)
    attach(attached, mesh, Fp32())
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(turns + 4):
        for idle in (False, True) if turn % 2 else (True, False):
            dist.barrier()
            taken = train(attached if idle else bare, turn)
            if turn >= 4:
                times[idle].append(taken)
    ratios = [b / a for a, b in zip(times[False], times[True], strict=True)]
    return {
        "step_ms": 1000 * statistics.median(times[False]),
        "idle_ratio_of_medians": statistics.median(times[True]) / statistics.median(times[False]),
        "idle_median_ratio": statistics.median(ratios),
        "turns": turns,
    }


def worker(out: Path, options: argparse.Namespace) -> None:
    """One rank: every kind, one line of JSON each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    mesh = Mesh.build(2, timeout_s=300)
    kind = options.kind[0]
    if options.codec is None:
        found = step_time(kind, options.step_preset, mesh, options.turns)
    else:
        found = memory(kind, options.preset, options.codec, mesh)
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    os._exit(0)


def launch(kind: str, codec: str | None, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the four ranks saw, in rank order; a fresh set of processes, so that nobody inherits a heap."""
    chosen = ("--kind", kind, *(() if codec is None else ("--codec", codec)))
    sizes = ("--preset", options.preset, "--step-preset", options.step_preset, "--turns", str(options.turns))
    shared = {
        **os.environ,
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports(1)[0]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    }
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "benchmarks.islands", "--worker", place, *chosen, *sizes]
        ranks = [
            subprocess.Popen(command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, cwd=ROOT, stdout=2)
            for r in range(4)
        ]
        codes = [rank.wait() for rank in ranks]
        if any(codes):
            raise RuntimeError(f"{kind}: ranks ended with {codes}")
        return [json.loads((Path(place) / f"{r}.json").read_text(encoding="utf-8")) for r in range(4)]


def measured(kind: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one kind of island."""
    rows: list[dict[str, Any]] = []
    for codec in CODECS if options.part != "step" else ():
        worst = max(launch(kind, codec, options), key=lambda s: s["sync_of_shard"])
        rows.append({"measured": "memory", "kind": kind, "codec": codec, "preset": options.preset, **worst})
    if options.part != "memory":
        worst = max(launch(kind, None, options), key=lambda s: s["idle_ratio_of_medians"])
        rows.append({"measured": "idle step", "kind": kind, "codec": None, "preset": options.step_preset, **worst})
    for row in rows:
        print(row, flush=True)
    return [{**row, "commit": git_commit()} for row in rows]


def known() -> list[dict[str, Any]]:
    """Rows of an earlier result: what is not measured now stays."""
    path = RESULTS / "islands.json"
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def main() -> None:
    """Measure every kind; the rank that needs most counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="30m", help="for memory")
    parser.add_argument("--step-preset", default="tiny", help="for step time")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--part", choices=("memory", "step", "all"), default="all")
    parser.add_argument("--kind", action="append", choices=KINDS, default=None)
    parser.add_argument("--codec", choices=list(CODECS), default=None, help="used by the launcher")
    parser.add_argument("--worker", type=Path, default=None, help="used by the launcher")
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.worker, options)
        return
    rows = [row for kind in options.kind or KINDS for row in measured(kind, options)]
    rows += [r for r in known() if all(r["kind"] != o["kind"] or r["codec"] != o["codec"] for o in rows)]
    rows.sort(key=lambda r: (KINDS.index(r["kind"]), [*CODECS, None].index(r["codec"])))
    path = write_result("islands", f"python -m benchmarks.islands --preset {options.preset}", rows)
    path.with_suffix(".md").write_text(islands_table(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
