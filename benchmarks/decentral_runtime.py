"""Whether the runtime model of decentralised AdamW names the faster of gossip and all-reduce, on a shaped network.

    python -m benchmarks.decentral_runtime [--work-dir DIR]      12 cells, 4 hosts; those done are kept; needs root
    python -m benchmarks.decentral_runtime worker OUT            one rank (started by it)

Cells: 20, 100 and 1000 Mbit/s, round trips of 2 and 60 ms, H of 1 and 8; nano, fp32. In each cell the same four
processes train with an fp32 sum of all, then with `Overlapped` gossip on the one-peer graph. Measured: the median of
a round's seconds. Predicted: `lowcomm.plan.decentral` from the cell's link and the inner step that the same processes
took alone. Writes benchmarks/results/decentral_runtime.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import write_result
from benchmarks.netlab import Lab
from benchmarks.netlab import Link as Wire
from benchmarks.planner import EFFICIENCY, PACKET_BYTES
from lowcomm.exchange.gossip import Gossip
from lowcomm.island import AdamW
from lowcomm.mixing import Overlapped
from lowcomm.model import ModelConfig, build_model, token_losses
from lowcomm.outer import SGD
from lowcomm.plan.decentral import GossipRound, all_reduce_round_s, gossip_round_s, message_bytes
from lowcomm.plan.runtime import Job, Link
from lowcomm.sync import LocalSGD
from lowcomm.topology import OnePeer
from lowcomm.transport import Collective

HOSTS, ROUNDS, BATCH, SEQ_LEN, VOCAB = 4, 10, 8, 64, 257
CELLS = [(rate, rtt, every) for rate in (20.0, 100.0, 1000.0) for rtt in (2.0, 60.0) for every in (1, 8)]
PORT = 29571


def worker(out: Path) -> None:
    """One rank: for each H the seconds of a step alone, then of rounds with each of the two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, found = dist.get_rank(), dict[str, Any]()
    draws = torch.Generator().manual_seed(rank)
    text = torch.randint(0, VOCAB - 1, (BATCH, SEQ_LEN + 1), generator=draws)
    for every in sorted({c[2] for c in CELLS}):
        for name in ("all-reduce", "gossip"):
            model = build_model(ModelConfig(preset="nano"), vocab_size=VOCAB, max_tokens=SEQ_LEN, seed=0, eos_id=0)
            inner = AdamW(lr=1e-3).build(model)
            exchange = None if name == "all-reduce" else Gossip(topology=OnePeer(), rule=Overlapped())
            alone = [_step(model, inner, text) for _ in range(8)]
            sync = LocalSGD(
                model, inner, every=every, outer=SGD(lr=1.0), exchange=exchange, transport=Collective(), norm_bound=None
            )
            marks: list[float] = []
            sync.listeners.append(lambda _, marks=marks: marks.append(time.perf_counter()))
            for _ in range(ROUNDS * every):
                _step(model, inner, text)
            sync.wait()
            dist.barrier()
            lasted = [b - a for a, b in pairwise(marks[2:])]
            parameters = sum(p.numel() for p in model.parameters())
            found[f"{name} {every}"] = {"round_s": statistics.median(lasted), "step_s": statistics.median(alone)}
            found["parameters"] = parameters
    if rank == 0:
        out.write_text(json.dumps(found), encoding="utf-8")


def _step(model: Any, inner: torch.optim.Optimizer, text: torch.Tensor) -> float:
    start = time.perf_counter()
    token_losses(model, text[:, :-1].contiguous(), text[:, 1:].contiguous()).mean().backward()
    inner.step()
    inner.zero_grad()
    return time.perf_counter() - start


def row_of(rate: float, rtt: float, every: int, found: dict[str, Any]) -> dict[str, Any]:
    """Measured and predicted seconds of a round of each, and who is faster."""
    measured = {name: found[f"{name} {every}"]["round_s"] for name in ("all-reduce", "gossip")}
    step_s = statistics.mean(found[f"{name} {every}"]["step_s"] for name in measured)
    job = Job(parameters=found["parameters"], islands=HOSTS, step_s=step_s, steps=ROUNDS * every)
    link = Link(rate_bytes_per_s=rate * 125e3, rtt_s=rtt / 1000, packet_bytes=PACKET_BYTES, efficiency=EFFICIENCY)
    gossip = GossipRound(degree=1, message_bytes=message_bytes(job.parameters), overlapped=True)
    predicted = {"all-reduce": all_reduce_round_s(job, link, every), "gossip": gossip_round_s(job, link, every, gossip)}
    return {
        "rate_mbit": rate,
        "rtt_ms": rtt,
        "every": every,
        "step_s": step_s,
        **{f"measured_{name}_s": seconds for name, seconds in measured.items()},
        **{f"predicted_{name}_s": seconds for name, seconds in predicted.items()},
        "faster": min(measured, key=lambda name: measured[name]),
        "predicted_faster": min(predicted, key=lambda name: predicted[name]),
    }


def main() -> None:
    """Run what is missing and write the rows."""
    if sys.argv[1:2] == ["worker"]:
        worker(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=Path("runs/bench/decentral_runtime"))
    parser.add_argument("--links", type=int, default=6, help="the first so many of the six links only")
    options = parser.parse_args()
    work_dir = options.work_dir.resolve()
    work_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for rate, rtt in list(dict.fromkeys((rate, rtt) for rate, rtt, _ in CELLS))[: options.links]:
        path = work_dir / f"{rate:g}-{rtt:g}.json"
        if not path.exists():
            with Lab(HOSTS, Wire(rate_mbit=rate, delay_ms=rtt / 2, queue_ms=1000.0)) as lab:
                lab.run_group(["-m", "benchmarks.decentral_runtime", "worker", str(path)], PORT, work_dir)
        found = json.loads(path.read_text(encoding="utf-8"))
        rows += [row_of(rate, rtt, every, found) for a, b, every in CELLS if (a, b) == (rate, rtt)]
        print(*[f"{r['every']}: {r['faster']} ({r['predicted_faster']})" for r in rows[-2:]], flush=True)
    right = sum(r["faster"] == r["predicted_faster"] for r in rows)
    if options.links == 6:
        print(write_result("decentral_runtime", "python -m benchmarks.decentral_runtime", rows))
    print(f"the faster one was named in {right} of {len(rows)} cells")


if __name__ == "__main__":
    main()
