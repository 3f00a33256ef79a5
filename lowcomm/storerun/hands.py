"""The hands of a member: what its process does to the model when the chain and the store say so.

An island of several ranks has one on each rank (`crew.py`); the member itself lives on the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from lowcomm.data import Shard
from lowcomm.run.assembly import Run
from lowcomm.run.export import export
from lowcomm.run.finale import Evaluation, evaluate, with_global_weights, write_summary
from lowcomm.storerun.blocks import Batch, BlockReader
from lowcomm.storerun.weights import LocalWeights
from lowcomm.sync.round import depart

Vectors = Sequence[Tensor]
"""One flat fp32 vector per fragment, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Stepped:
    """An inner step."""

    loss: float
    """Nats per token; not finite: nothing was changed."""
    tokens: int


class Hands:
    """Of an island of one rank. blocks: reads the text that members lease; own: the island's own text."""

    def __init__(self, run: Run, *, blocks: BlockReader | None, own: Shard | None) -> None:
        self.run, self.blocks, self.own = run, blocks, own
        schedule = run.sync.spec.schedule
        self.weights = LocalWeights(run.sync.state, schedule.alpha if schedule.overlaps else None)
        self._private = self._own_names()
        self._batches: list[Batch] = []
        self._block: int | None = None

    def take(self, weights: Vectors) -> None:
        """Drop the local work; moments of the inner optimizer stay where they are finite."""
        self._block = None
        for fragment, flat in enumerate(weights):
            self.weights.take(fragment, self.cut(fragment, flat))
        self.weights.private = self._private  # from the first weights on
        inner = self.run.sync.replicas[0].inner
        held = [t for values in inner.state.values() for t in values.values() if isinstance(t, Tensor)]
        if not all(bool(t.isfinite().all()) for t in held):
            inner.state.clear()
        inner.zero_grad()

    def _own_names(self) -> frozenset[str]:
        """Tensors that the codec leaves to each island for good."""
        state = self.run.sync.state
        now = state.round_of(0)
        named = [state.anchor_of(f, 0).named for f in range(len(state.fragments))]
        return frozenset().union(*(state.spec.codec.private(like, now) for like in named))

    def rebase(self, weights: Vectors, outstanding: Sequence[Tensor | None], version: int) -> None:
        """The chain went on. version: outer steps of the first fragment, which rules that alternate go by."""
        for fragment, (flat, out) in enumerate(zip(weights, outstanding, strict=True)):
            self.weights.rebase(fragment, self.cut(fragment, flat), None if out is None else self.cut(fragment, out))
        self.run.sync.state.round = version

    def step(self, block: int | None, number: int, lr_step: int) -> Stepped:
        """Inner step `number` (from 0) of a block, or the next one of the island's own text (None)."""
        run, island = self.run, self.run.islands[0]
        batches = self._read(block, number)
        loss = self.agree(island.backward(batches))
        if not math.isfinite(loss):
            island.inner.zero_grad()
            return Stepped(loss=loss, tokens=0)
        tokens = island.reported_tokens(batches)
        run.sync.count_tokens(run.members.share(tokens))
        island.update(lr_step)
        return Stepped(loss=loss, tokens=tokens)

    def _read(self, block: int | None, number: int) -> list[Batch]:
        count = self.run.config.inner.accumulation
        if block is None:
            assert self.own is not None
            self.own.prepare(count)
            return [self.own.next_batch() for _ in range(count)]
        if block != self._block:
            assert self.blocks is not None
            self._batches, self._block = list(self.blocks.batches(block)), block
        return self._batches[number * count : (number + 1) * count]

    def delta(self, fragment: int) -> Tensor:
        """What is unsent of a fragment, as hooks release it: flat, fp32, on the CPU."""
        state = self.run.sync.state
        try:
            out = depart(state, fragment)
            return out.deltas[0][: out.fragment.numel].cpu().clone()
        finally:
            state.fragments[fragment].release()

    def departed(self, fragment: int, weights: Tensor, outstanding: Tensor | None, everything: bool) -> None:
        """A contribution to a fragment left."""
        out = None if outstanding is None else self.cut(fragment, outstanding)
        self.weights.departed(fragment, self.cut(fragment, weights), out, everything)

    @contextmanager
    def holding(self, weights: Vectors) -> Iterator[None]:
        """Within, the model holds these global weights."""
        before = self.weights.hold({f: self.cut(f, flat) for f, flat in enumerate(weights)})
        try:
            with with_global_weights(self.run.sync.state):
                yield
        finally:
            self.weights.hold(before)

    def evaluate(self, weights: Vectors) -> Evaluation:
        """Validation loss of the global weights."""
        with self.holding(weights):
            return evaluate(self.run)

    def export(self) -> None:
        """Write the global model, which the anchors hold at the end. Raises CheckpointError."""
        export(self.run)

    def summarise(self, status: str, wall_s: float, result: Evaluation | None) -> None:
        """Write summary.json."""
        write_summary(self.run, status, wall_s, result)

    def cut(self, fragment: int, flat: Tensor) -> Tensor:
        """This rank's part of a fragment's vector: all of it."""
        return flat

    def agree(self, loss: float) -> float:
        """The island's loss, from that of its ranks."""
        return loss

    def idle(self) -> None:
        """Called while the island waits: other ranks, where there are any, are told that it lives."""

    def end(self) -> None:
        """Let other ranks go, where there are any."""
