"""What test_islands.py runs in real processes: 2 islands of 2 ranks, every kind, the combinations of `usable`.

python -m tests.support.island_worker OUT_DIR long|short KIND...

The four ranks are forks of one process: what takes long to import is imported once.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard

from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, TopK, TwoBit
from lowcomm.config import RunConfig
from lowcomm.data import DataConfig
from lowcomm.island import AdamW, InnerConfig, IslandConfig, Mesh, PlainIsland
from lowcomm.island_kinds import build_island
from lowcomm.model import ModelConfig, build_model
from lowcomm.outer import Nesterov
from lowcomm.schedule import EveryH, EveryStep, Schedule, Streaming
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.digest import sha256_weights
from lowcomm.sync import LocalSGD
from lowcomm.sync.overlap import relaunch
from lowcomm.transport import Collective, Transport
from lowcomm.transport.base import Altered, Arrival
from lowcomm.types import IGNORED, SyncError, TransportError

KINDS = ("ddp", "fsdp", "zero1", "zero2", "zero2-offload", "zero3", "pipeline", "tensor")
EVERY, STEPS, BATCH, SEQ, VOCAB = 4, 10, 8, 12, 32
HEAVY = (
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "transformers.models.llama.modeling_llama",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload",
    "functorch.compile",
    "networkx",
)
"""What the first island of a kind would import, in each of four ranks."""
COMBINATIONS: dict[str, tuple[Codec, Schedule]] = {
    "fp32": (Fp32(), EveryH()),
    "int4": (ErrorFeedback(codec=Int4()), EveryH()),
    "two-bit, streaming": (ErrorFeedback(codec=TwoBit()), Streaming(fragments=2, delay=1)),
    "top-k": (ErrorFeedback(codec=TopK(chunk=64, k=8, bits=2)), EveryH()),
    "data-parallel": (Fp32(), EveryStep()),
}


def configuration(kind: str) -> RunConfig:
    """Two micro-batches per step, clipping, weight decay on matrices: what could go wrong between kinds."""
    name = kind.removesuffix("-offload")
    return RunConfig(
        islands=2,
        steps=STEPS,
        seed=5,
        device="cpu",
        island=IslandConfig(kind=name, size=2, offload=name != kind),  # pyright: ignore[reportArgumentType]
        data=DataConfig(batch_size=BATCH, seq_len=SEQ),
        model=ModelConfig(preset="nano", width=16, tied_embeddings=False),
        inner=InnerConfig(optimizer=AdamW(lr=1e-2), clip_norm=0.5, accumulation=2),
    )


def build(
    kind: str, combination: str, transport: Transport, mesh: Mesh | None, count: int = 1
) -> tuple[LocalSGD, list[PlainIsland]]:
    """The sync of `count` local islands, or of this rank's part of one."""
    config = configuration(kind)
    if mesh is None:
        config = dataclasses.replace(config, island=IslandConfig(size=1))
    islands = []
    for number in transport.local[:count]:
        model = build_model(config.model, vocab_size=VOCAB, max_tokens=SEQ, seed=config.seed, eos_id=0)
        islands.append(build_island(config, model, number, False, mesh))
    codec, schedule = COMBINATIONS[combination]
    sync = LocalSGD(
        [i.model for i in islands],
        [i.inner for i in islands],
        every=EVERY,
        island=islands[0].part if mesh is not None else None,
        outer=Nesterov(lr=0.7, momentum=0.6),
        codec=codec,
        schedule=schedule,
        transport=transport,
    )
    return sync, islands


def batches(island: int, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two micro-batches of an island: int64 [BATCH, SEQ] each, the same on all of its ranks.

    Row r of micro-batch m has r (m + 1) / 2 masked targets, so that neither ranks nor micro-batches count equally many.
    """
    generator = torch.Generator().manual_seed(1000 * island + step)
    found = []
    for number in (1, 2):
        rows = torch.randint(VOCAB, (BATCH, SEQ + 1), generator=generator)
        targets = rows[:, 1:].clone()
        for row in range(BATCH):
            targets[row, : row * number // 2] = IGNORED
        found.append((rows[:, :-1].contiguous(), targets))
    return found


def train_step(sync: LocalSGD, islands: list[PlainIsland], step: int) -> list[float]:
    """As the trainer does it."""
    average, losses = sync.next_action.average_gradients, []
    for i, (island, number) in enumerate(zip(islands, sync.transport.local, strict=True)):
        losses.append(island.backward(batches(number, step)))
        sync.count_tokens(BATCH * SEQ * (1 + number), i)  # unequal weights
        if not average:
            island.update(step)
    if average:
        sync.average_gradients()
        for island in islands:
            island.update(step)
    return losses


def run(sync: LocalSGD, islands: list[PlainIsland], first: int = 0, last: int = STEPS) -> dict[str, Any]:
    """Digests of the global weights after every sync, the last losses, weights and bytes."""
    seen: list[str] = []
    sync.listeners.append(lambda report: seen.append(f"{report.round.index}:{sha256_weights(sync.weights())}"))
    losses: list[float] = []
    for step in range(first, last):
        losses = train_step(sync, islands, step)
    if last == STEPS:
        sync.finish()
    return {
        "digests": seen,
        "losses": losses,
        "norm": islands[0].grad_norm,
        "sent": sync.transport.sent_bytes[0],
        "weights": {n: w.tolist() for n, w in sync.weights().items()},
        "columns": [n for n, p in sync.replicas[0].params.items() if cut_by_columns(p)],
        "held": {n: t.tolist() for n, t in sync.replicas[0].held.items() if n in sync.replicas[0].params},
    }


def cut_by_columns(parameter: torch.Tensor) -> bool:
    return getattr(parameter, "placements", ()) == (Shard(1),)


def resumed(kind: str, combination: str, whole: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """The run that gave `whole`, saved inside its second round into other objects, which go on."""
    sync, islands = build(kind, combination, transport(mesh), mesh)
    run(sync, islands, last=EVERY + 2)
    sync.wait()  # its groups are those of the other objects
    saved_global, (tensors, values) = global_part(sync.state), island_part(sync.state, 0)
    copies = {n: t.detach().clone() for n, t in tensors.items()}
    saved_global = ({n: t.clone() for n, t in saved_global[0].items()}, saved_global[1])
    fresh, fresh_islands = build(kind, combination, transport(mesh), mesh)
    load_global(fresh.state, saved_global)
    load_island(fresh.state, 0, (copies, values))
    fresh_islands[0].cpu_rng = islands[0].cpu_rng
    relaunch(fresh.state)
    again = run(fresh, fresh_islands, first=EVERY + 2)
    same = all(again[key] == whole[key] for key in ("weights", "held", "sent", "losses"))
    return {"same": same and whole["digests"][-len(again["digests"]) :] == again["digests"]}


def transport(mesh: Mesh) -> Collective:
    """A new one, so that its bytes count from 0."""
    return Collective(mesh.peers, beside=mesh.beside)


class Broken(Collective):
    """Its link fails once, in the exchange of payloads or in the roll call before it."""

    broken: str | None = None

    def weighted_sum(self, vectors: Sequence[torch.Tensor], weights: Sequence[float], out: torch.Tensor) -> Altered:
        self._fail("sum")
        return super().weighted_sum(vectors, weights, out)

    def start_swap(self, rows: Sequence[Sequence[torch.Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        self._fail("swap")
        return super().start_swap(rows, sizes)

    def gather(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        self._fail("roll")
        return super().gather(rows)

    def _fail(self, where: str) -> None:
        if self.broken == where:
            self.broken = None
            raise TransportError(f"the {where} failed. Nothing was committed.")


def broken(kind: str, combination: str, where: str, mesh: Mesh) -> dict[str, Any]:
    """The link between the second ranks of both islands fails in the first round; the next step syncs what is due."""
    link = Broken(mesh.peers, beside=mesh.beside)
    sync, islands = build(kind, combination, link, mesh)
    before = {n: w.clone() for n, w in sync.weights().items()}
    error = ""
    for step in range(EVERY + 1):
        if step == EVERY - 1 and mesh.rank == 1:
            link.broken = where
        try:
            train_step(sync, islands, step)
        except SyncError as failure:
            error = str(failure)
            seen = {"pending": list(sync.pending), "round": sync.round}
            seen["kept"] = all(torch.equal(before[n], w) for n, w in sync.weights().items())
    after = {n: w.tolist() for n, w in sync.weights().items()}
    return {"error": error, **(seen if error else {}), "weights": after, "later": [list(sync.pending), sync.round]}


def evaluated(kind: str, mesh: Mesh) -> dict[str, Any]:
    """Losses by token of a new island, its parameters and the names that an export would have."""
    _, (island,) = build(kind, "fp32", transport(mesh), mesh)
    with torch.no_grad():
        losses = island.token_losses(*batches(0, 0)[0])
    state = island.whole_state()
    sums = {} if not state else {n: float(t.double().sum()) for n, t in sorted(state.items())}
    return {"losses": losses.tolist(), "counts": list(island.parameter_counts()), "state": sums}


def usable(kind: str, long: bool) -> list[str]:
    """Combinations that are run with a kind: ZeRO has no data-parallel steps; its stages share what they hold.

    A tensor parallel island takes many times as long on a CPU. Codecs see the shards of FSDP as those of other kinds,
    which meet all of them only in long runs.
    """
    some = ["fp32", "two-bit, streaming"]
    if kind in ("zero2", "zero2-offload"):
        return some
    every = list(COMBINATIONS) if (long and kind != "tensor") or kind in ("ddp", "fsdp") else [*some, "data-parallel"]
    return [c for c in every if c != "data-parallel" or not kind.startswith("zero")]


def one(kind: str, long: bool, mesh: Mesh) -> dict[str, Any]:
    """Everything about one kind."""
    seen: dict[str, Any] = {c: run(*build(kind, c, transport(mesh), mesh)) for c in usable(kind, long)}
    seen["resumed"] = resumed(kind, "two-bit, streaming", seen["two-bit, streaming"], mesh)
    if kind == "fsdp":
        cases = (("fp32", "sum"), ("int4", "swap"), ("int4", "roll"))
        seen["broken"] = [broken(kind, combination, where, mesh) for combination, where in cases]
    seen["evaluated"] = evaluated(kind, mesh)
    return seen


def rank_main(rank: int, out: Path, long: bool, kinds: Sequence[str]) -> None:
    """Run the kinds in this rank; one file for each, with what went wrong if so."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    mesh = Mesh.build(2, timeout_s=60)
    for kind in kinds:
        try:
            result = one(kind, long, mesh)
        except Exception:
            result = {"error": traceback.format_exc()}
        (out / f"{kind}.{rank}.json").write_text(json.dumps(result), encoding="utf-8")
        if "error" in result:
            break  # the other ranks may be anywhere


def main() -> None:
    """Fork the ranks and wait for them. No thread runs yet, and no group or autograd was used."""
    torch.set_num_threads(1)
    for heavy in HEAVY:
        importlib.import_module(heavy)
    children: list[int] = []
    for rank in range(4):
        child = os.fork()
        if child == 0:
            try:
                rank_main(rank, Path(sys.argv[1]), sys.argv[2] == "long", sys.argv[3:])
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
