"""A toy run over a store: weights count how often each data block was trained, so that a block that enters twice shows
as 2 and one that is lost as 0. Used by the checker, the tests of a member and the simulation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from lowcomm.codec import Codec, Fp32
from lowcomm.outer import SGD, Outer
from lowcomm.store import judge, local_weights
from lowcomm.store.applied import Applied
from lowcomm.store.chain_state import ChainState, first_state
from lowcomm.store.contribution import Contribution
from lowcomm.store.island import StoreIsland
from lowcomm.store.layout import Layout
from lowcomm.store.memory import Heap, MemoryObjects
from lowcomm.store.objects import Objects
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.run_file import RunFile
from lowcomm.store.simulation import Outcome, Simulation
from lowcomm.store.snapshot import SnapshotWriter
from lowcomm.store.start import start_run
from lowcomm.store.surroundings import Phase, Surroundings

RUN_ID = "5" * 32


def toy_rules(
    blocks: int | None = 12,
    fragments: int = 1,
    codec: Codec | None = None,
    stale: int = 4,
    keep: int = 2,
    lease_blocks: int = 2,
    target_tokens: int | None = None,
    outer: Outer | None = None,
) -> ChainRules:
    """One vector per fragment, an element for each block; outer SGD of rate 1."""
    size = 12 if blocks is None else blocks
    layouts = tuple(Layout(names=(f"w{i}",), shapes=((size,),)) for i in range(fragments))
    return ChainRules(
        run_id=RUN_ID, layouts=layouts, codec=codec or Fp32(), outer=outer or SGD(lr=1.0), stale=stale, keep=keep,
        blocks=blocks, lease_blocks=lease_blocks, target_tokens=target_tokens,
    )  # fmt: skip


def toy_run(objects: Objects, rules: ChainRules, back_off: Callable[[int], None] = lambda k: None) -> RunFile:
    """Start it: all weights are 0."""
    state = first_state([lay.views(torch.zeros(lay.numel)) for lay in rules.layouts], rules)

    def make(writer: SnapshotWriter) -> RunFile:
        kind = {"kind": "own"} if rules.blocks is None else {"kind": "shared", "blocks": rules.blocks}
        return RunFile(
            run_id=RUN_ID, configuration={},
            fragments=tuple(
                tuple((n, s, "float32") for n, s in zip(lay.names, lay.shapes, strict=True)) for lay in rules.layouts
            ),
            codec=rules.codec_name, snapshot=writer.announced, data=kind, stale=rules.stale, keep=rules.keep,
            lease_blocks=rules.lease_blocks, target_tokens=rules.target_tokens,
        )  # fmt: skip

    return start_run(objects, state, rules, "0" * 32, make, back_off)


class ToyIsland:
    """A member and its local weights."""

    def __init__(
        self,
        objects: Objects,
        run: RunFile,
        rules: ChainRules,
        policy: Policy,
        clock: Callable[[], float],
        rng: random.Random,
        name: str = "toy",
    ) -> None:
        around = Surroundings(name=name, clock=clock, draw=lambda: f"{rng.getrandbits(128):032x}")
        self.island = StoreIsland(objects, run, rules, policy, around)
        self.rules, self.rng = rules, rng
        self.local: list[list[Tensor]] = []
        self.unsent: list[int] = []
        """Trained blocks that no contribution holds yet; elements where there are no blocks."""
        self.trained: list[Tensor] = []
        """By fragment: all that this incarnation has trained, as Deltas have it."""
        self.inc = ""
        """The incarnation that the local weights are of."""
        self.left: bool = False

    def heal(self) -> None:
        island = self.island
        if island.heal():
            self.local = [[f.weights.clone()] for f in island.state.fragments]
            self.trained = [torch.zeros_like(f.weights) for f in island.state.fragments]
            self.unsent = []
            self.inc = island.inc

    def poll(self) -> list[Applied]:
        """Poll and rebase the local weights."""
        applied = self.island.poll()
        if self.island.phase != Phase.HEAL:
            self.rebase(applied)
            self.inc = self.island.inc  # a joiner that asked anew
        return applied

    def rebase(self, applied: list[Applied]) -> None:
        for one in applied:
            touched = {c.fragment: c for c in one.changes}
            for f, departed in one.departed.items():
                if f not in touched:  # it was used with weight 0
                    flat = self.island.state.fragments[f].weights
                    local_weights.rebase(self.rules.layouts[f], flat, flat, departed, self.local[f])
            for f, change in touched.items():
                local_weights.rebase(self.rules.layouts[f], change.old, change.new, one.departed.get(f), self.local[f])

    def delta(self, fragment: int) -> Tensor:
        island, layout = self.island, self.rules.layouts[fragment]
        weights = island.state.fragments[fragment].weights
        return local_weights.delta_of(layout, weights, island.outstanding(fragment), self.local[fragment])

    def free(self) -> list[int]:
        """Leased blocks that are not trained yet."""
        return [b for b in self.island.lease if b not in self.unsent]

    def train(self, block: int) -> None:
        for tensors, trained in zip(self.local, self.trained, strict=True):
            tensors[0][block] -= 1
            trained[block] += 1
        self.unsent.append(block)

    def train_some(self, rng: random.Random) -> None:
        """A block of the lease, or any element where each site has data of its own."""
        if self.rules.blocks is not None:
            if free := self.free():
                self.train(free[0])
        elif not self.island.closing:
            self.train(rng.randrange(self.rules.layouts[0].numel))

    def contribute(self) -> None:
        blocks, self.unsent = tuple(sorted(self.unsent)), []
        deltas = {f: self.delta(f) for f in range(len(self.local))}
        leased = blocks if self.rules.blocks is not None else ()
        self.island.contribute(deltas, tokens=len(blocks), steps=len(blocks), blocks=leased)

    def may_contribute(self) -> bool:
        return all(self.island.may_contribute(f) for f in range(len(self.local)))

    def wants(self) -> bool:
        """Whether a round is over: all leased blocks are trained, or a last contribution is wanted."""
        if not self.may_contribute():
            return False
        full = bool(self.unsent) and not self.free() and self.rules.blocks is not None
        return full or self.island.must_finish(0)

    def step(self) -> None:
        """One turn of a plain member."""
        island = self.island
        if island.phase == Phase.HEAL:
            self.heal()
            return
        if island.phase == Phase.DONE:
            self.left = island.finish()
            return
        self.poll()
        if island.phase == Phase.MEMBER:
            if free := self.free():
                self.train(free[0])
            elif self.wants():
                self.contribute()


class Village:
    """Toy islands on one virtual clock over one heap."""

    def __init__(self, rules: ChainRules, policy: Policy, islands: int, heap: Heap | None = None) -> None:
        self.rules, self.policy, self.heap = rules, policy, Heap() if heap is None else heap
        self.simulation = Simulation()
        self.run_file = toy_run(MemoryObjects(self.heap), rules)
        self.toys: list[ToyIsland] = []
        self.period_s: list[float] = []
        self.dead: set[int] = set()
        for _ in range(islands):
            self.add()

    def add(self, period_s: float = 0.1) -> ToyIsland:
        """One more process, which takes a turn every so often."""
        k = len(self.toys)
        self.period_s.append(period_s)
        self.toys.append(
            ToyIsland(
                MemoryObjects(self.heap), self.run_file, self.rules, self.policy, self.simulation.clock,
                random.Random(k), f"n{k}",
            )
        )  # fmt: skip
        return self.toys[-1]

    def turn(self, k: int) -> float | None:
        """What the simulation calls."""
        if k in self.dead:
            return None
        self.toys[k].step()
        return None if self.toys[k].left else self.period_s[k]

    def go(self, most_turns: int = 20_000, until: Callable[[], bool] = lambda: False) -> Outcome:
        """All of them, until they have left or something is so."""
        turns = [lambda k=k: None if until() else self.turn(k) for k in range(len(self.toys))]
        return self.simulation.run(turns, most_turns)

    @property
    def alive(self) -> list[ToyIsland]:
        return [toy for k, toy in enumerate(self.toys) if k not in self.dead]


@contextmanager
def whole_counts() -> Iterator[None]:
    """Commits count each contribution once and whole, so that weights are counts."""

    def equal(state: ChainState, used: Sequence[Contribution], rules: ChainRules, policy: Policy) -> list[float]:
        per = [sum(o.header.fragment == c.header.fragment for o in used) for c in used]
        return [1 / max(per) for _ in used]

    def whole(used: Sequence[Contribution], policy: Policy) -> float:
        fragments = [c.header.fragment for c in used]
        return float(max((fragments.count(f) for f in fragments), default=1))

    def weigh(
        state: ChainState, used: Sequence[Contribution], rules: ChainRules, policy: Policy
    ) -> tuple[list[float], float]:
        return equal(state, used, rules, policy), whole(used, policy)

    with patch.object(judge, "weigh", weigh):
        yield
