"""Random histories of the product's own protocol over a faulty store, and the invariants that must hold in each.

Processes are threads of which one runs at a time: each stops before every request, and a seeded scheduler picks who
goes on. Requests lose answers, land late (even after their sender died), listings and reads lag; processes are killed,
frozen, started twice; live members are suspected; a committed payload is lost; somebody writes nonsense where a commit
belongs. After the chaos the calm phase must end the run. Checked all along (numbers of the protocol's invariants):

1, 5  one history      whoever applies version v applies the same bytes and gets the same digest; they stay in the store
2     once             a contribution is used once, while its author is a member; the weights are the sum of those used
3     blocks           each counts once, at the end exactly once; nobody holds work that the global weights have already
4     the equation     local = global - sum(departed of pending) - unsent, after every event
6     liveness         with one island alive the run ends
7     replay           from every snapshot in the store the chain leads to the same digests
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int8, LocalResidual
from lowcomm.store import fold, keys, policy, snapshot, text, valid
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.faulty import Faults, FaultyHeap
from lowcomm.store.follower import BrokenRunError, Follower
from lowcomm.store.healer import Healer
from lowcomm.store.memory import Heap, MemoryObjects
from lowcomm.store.objects import Answer, Listed, StoreError
from lowcomm.store.payloads import Payloads
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.surroundings import Phase
from lowcomm.types import DivergenceError, PayloadError
from tests.support.store_toy import ToyIsland, toy_rules, toy_run, whole_counts

BLOCKS, CALM_STEPS = 16, 30_000
PATIENCE = 150.0
LEAVES = 0.003
"""Share of turns in which a member is told to stop."""
SWITCHES = 0.35
"""Share of requests before which another process may go on."""


class ViolationError(Exception):
    """An invariant does not hold; `name` says which."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Killed(BaseException):
    """kill -9: nothing of the process runs any more."""


class Process(threading.Thread):
    """An island's process: runs only while the scheduler waits for it."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(daemon=True)
        self.world, self.label = world, name
        self.go, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.killed = self.ended = False
        self.frozen_until = 0
        self.leaving = False
        self.failure: BaseException | None = None
        self.started = False
        self.objects = SteppedObjects(self, world.heap, world.part_bytes)
        self.toy: ToyIsland

    def pause(self) -> None:
        """Let others run; come back when the scheduler says so. Often it is the same process that goes on at once."""
        if self.world.goes_on(self):
            return
        self.back.release()
        self.go.acquire()
        if self.killed:
            raise Killed

    def proceed(self) -> None:
        """For the scheduler: until the next pause, or the end."""
        if not self.started:
            self.started = True
            self.start()
        else:
            self.go.release()
        self.back.acquire()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def kill(self) -> None:
        """For the scheduler."""
        if self.started and not self.ended:
            self.killed = True
            self.proceed()
        self.ended = True

    def run(self) -> None:
        try:
            with contextlib.suppress(Killed):
                self.live()
        except BaseException as error:
            self.failure = error
        self.ended = True
        self.back.release()

    def live(self) -> None:
        """What the process does: in the chaos at any moment anything that a member may do."""
        world, rng = self.world, self.world.rng
        self.toy = toy = ToyIsland(
            self.objects, world.run_file, world.rules, world.policy, lambda: float(world.heap.now), rng, self.label
        )
        while not toy.left:
            self.pause()
            try:
                with contextlib.suppress(StoreError):  # it is down: back off
                    self.turn(toy, rng)
            except (BrokenRunError, DivergenceError) as error:
                raise ViolationError("liveness", f"an island gives up: {error}") from error
            world.check_local(toy)

    def turn(self, toy: ToyIsland, rng: random.Random) -> None:
        if toy.island.phase == Phase.HEAL:
            toy.heal()
            return
        if toy.island.phase == Phase.DONE:
            toy.left = toy.island.finish()
            return
        if self.leaving or (self.world.heap.chaos and rng.random() < LEAVES):  # SIGTERM
            self.leaving, toy.inc = True, ""  # whose local weights count no more
            toy.left = toy.island.leave(waits=rng.random() < 0.5)
            self.world.counts["left"] += toy.left
            return
        toy.poll()
        if toy.island.phase == Phase.MEMBER:
            self.world.check_local(toy)
            if rng.random() < 0.4:
                toy.train_some(rng)
            calm = not self.world.heap.chaos
            if toy.wants() or (toy.may_contribute() and toy.unsent and (calm or rng.random() < 0.3)):
                toy.contribute()
                self.world.contributed(toy)


class SteppedObjects(MemoryObjects):
    """A process's way to the store: it stops before every request."""

    def __init__(self, process: Process, heap: Heap, part_bytes: int) -> None:
        super().__init__(heap, part_bytes=part_bytes)
        self.process = process

    def put_new(self, key: str, data: bytes) -> Answer:
        self.process.pause()
        return super().put_new(key, data)

    def get(self, key: str) -> bytes | None:
        self.process.pause()
        return super().get(key)

    def get_range(self, key: str, start: int, size: int) -> bytes | None:
        self.process.pause()
        return super().get_range(key, start, size)

    def list(self, prefix: str, after: str | None = None) -> list[Listed]:
        self.process.pause()
        return super().list(prefix, after)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.process.pause()
            self.process.world.check_deleted(key)
            super().delete([key])


class World:
    """One random history. own: whether each site has data of its own; None: drawn."""

    def __init__(self, seed: int, *, exact: bool = True, own: bool | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.heap = FaultyHeap(rng, Faults(failed=0.02), exact=exact)
        self.part_bytes = rng.choice([1 << 20, 1 << 20, 900])
        self.rules = _rules(rng, own)
        self.policy = Policy(
            mode=rng.choice(["synchronous", "buffered", "timed"]), size=2, every_s=40.0, islands=2, patience_s=PATIENCE,
            expected_s=80.0, norm_bound=None, snapshot_every_s=300.0,
        )  # fmt: skip
        self.heap.chaos = False
        self.run_file = toy_run(MemoryObjects(self.heap, part_bytes=self.part_bytes), self.rules)
        self.heap.chaos = True
        self.history: dict[int, tuple[str, str]] = {0: ("", "")}
        """By version: sha256 of the commit before it, digest."""
        self.used: dict[tuple[str, int], int] = {}
        """By incarnation and number: the version whose commit used it."""
        self.counted: dict[int, int] = {}
        """By block: the version whose commit counted it."""
        self.made: dict[tuple[str, int], tuple[int, Tensor]] = {}
        """By incarnation and number: fragment and Delta."""
        self.lost: set[str] = set()
        self.wrong_state = False
        self.processes = [Process(self, f"n{k}") for k in range(rng.randint(2, 4))]
        self.names = len(self.processes)
        self.counts = {"steps": 0, "crashes": 0, "lost": 0, "garbage": 0, "left": 0}

    # -------------------------------------------------------------------------------------------------- invariants

    def record(self, before: ChainState, follower: Follower, raw: bytes, applied: Any) -> None:
        """After every commit that anybody applies."""
        state = follower.state
        assert state is not None
        found = (text.sha256(raw), state.digest)
        if self.history.setdefault(state.version, found) != found:
            raise ViolationError("one history", f"version {state.version} is made twice, from other bytes or to others")
        for one in applied.used:
            if one.inc not in before.members:
                raise ViolationError("once", f"{one.inc}-{one.seq} was used in {before.version} and is of no member")
            if self.used.setdefault((one.inc, one.seq), before.version) != before.version:
                raise ViolationError("once", f"{one.inc}-{one.seq} was used in {before.version} and before")
            for block in one.blocks:
                if self.counted.setdefault(block, before.version) != before.version:
                    raise ViolationError("blocks", f"block {block} counts again in {before.version}")
        self.check_weights(state)

    def check_weights(self, state: ChainState) -> None:
        """They are the sum of the contributions that were used, each once."""
        if not isinstance(self.rules.codec, Fp32):
            return
        for f, fragment in enumerate(state.fragments):
            total = torch.zeros_like(fragment.weights)
            for key, version in self.used.items():
                if version < state.version and self.made[key][0] == f:
                    total -= self.made[key][1]
            if not torch.allclose(fragment.weights, total, atol=1e-3):
                raise ViolationError("once", f"the weights of version {state.version} are not the sum of what was used")

    def check_deleted(self, key: str) -> None:
        """What is deleted is behind a snapshot that the chain confirms."""
        parts = keys.read_delta(key)
        version = None if parts is None else self.used.get((parts.inc, parts.seq))
        if version is not None and version >= self.covered():
            raise ViolationError("replay", f"{key}, which commit {version} uses, is deleted: no snapshot covers it")

    def contributed(self, toy: ToyIsland) -> None:
        """After a contribution was made."""
        work = toy.island.work
        for seq, one in work.pending.items():
            self.made.setdefault((work.inc, seq), (one.fragment, one.flat))
        self.check_local(toy)

    def check_local(self, toy: ToyIsland) -> None:
        """The equation of local weights, and that nobody holds what the global ones have already."""
        if toy.island.phase != Phase.MEMBER or toy.inc != toy.island.inc:
            return
        state, work = toy.island.state, toy.island.work
        for f in range(len(toy.local)):
            departed = sum((d for (inc, _), (g, d) in self.made.items() if inc == work.inc and g == f), torch.zeros(1))
            if not torch.allclose(toy.delta(f) + departed, toy.trained[f], atol=1e-3):
                raise ViolationError("the equation", f"{work.inc} at {state.version}: {toy.delta(f)} is unsent")
        if self.rules.blocks is not None:
            held = {*toy.unsent, *work.blocks()}
            late = {b for b in held if self.counted.get(b, state.version) < state.version}
            if late:
                raise ViolationError(
                    "blocks", f"{work.inc} holds {sorted(late)}, which the global weights have already"
                )

    def check_end(self, state: ChainState) -> None:
        """After everybody has left."""
        if self.rules.blocks is not None and set(self.counted) != set(range(self.rules.blocks)):
            raise ViolationError("blocks", f"counted at the end: {sorted(self.counted)}")
        for version in range(state.version):
            raw = self.heap.objects.get(keys.commit(version))
            if raw is None or text.sha256(raw) != self.history[version + 1][0]:
                raise ViolationError("one history", f"commit {version} was replaced after it was applied")
        self.check_replay(state)

    def check_replay(self, end: ChainState) -> None:
        objects = MemoryObjects(self.heap, part_bytes=self.part_bytes)
        for key in [k for k in self.heap.objects if keys.is_manifest(k)]:
            manifest = snapshot.read_manifest(objects, key)
            if manifest is None or manifest[0].version < end.horizon(self.rules.keep):
                continue  # it arrived after it had been deleted with what it needs
            if not Healer(objects, self.run_file, self.rules)._confirmed(key, *manifest):
                continue
            state = snapshot.load(objects, key, manifest[0], self.rules)
            payloads = Payloads(objects, self.rules)
            while state is not None and state.version < end.version:
                raw = self.heap.objects[keys.commit(state.version)]
                held = payloads.fetch_all(valid.keys_of(state, raw, self.rules))
                if held is None or valid.damaged(raw, held) is not None:
                    lost = set(valid.keys_of(state, raw, self.rules)) & self.lost
                    if not lost:
                        raise ViolationError("replay", f"from {key} the payloads of commit {state.version} are gone")
                    break
                state = fold.fold(state, raw, held, self.rules).state
                if state.digest != self.history[state.version][1]:
                    raise ViolationError("replay", f"from {key} version {state.version} is another one")

    # --------------------------------------------------------------------------------------------------- scheduler

    def goes_on(self, process: Process) -> bool:
        """Whether the process goes on without a switch, which is what costs time."""
        if process.killed or self.rng.random() < SWITCHES:
            return False
        self.heap.tick()
        self.counts["steps"] += 1
        return True

    def step(self, process: Process) -> None:
        self.heap.tick()
        self.counts["steps"] += 1
        process.proceed()
        if process.ended:
            self.processes.remove(process)

    def chaos(self) -> None:
        for _ in range(self.rng.randint(500, 4000)):
            if not self.processes:
                return
            process = self.rng.choice(self.processes)
            if process.frozen_until > self.heap.now:
                self.heap.tick()
                continue
            self.disturb(process)
            if process in self.processes:
                self.step(process)

    def disturb(self, process: Process) -> None:
        r = self.rng.random()
        if r < 0.006:  # kill -9, and a restart under the same name
            process.kill()
            self.processes.remove(process)
            self.processes.append(Process(self, process.label))
            self.counts["crashes"] += 1
        elif r < 0.008:  # a second start of the same name while the first lives
            self.processes.append(Process(self, process.label))
        elif r < 0.016:  # SIGSTOP, a partition
            process.frozen_until = self.heap.now + self.rng.randint(50, 1500)
        elif r < 0.022:
            self.lose_payload()
        elif r < 0.024:
            self.write_nonsense(process)

    def lose_payload(self) -> None:
        """One that a snapshot covers which the chain confirms."""
        raw = self.heap.objects.get(keys.commit(self.covered() - 1)) if self.covered() else None
        try:
            used = [] if raw is None else Commit.read(raw).used
        except PayloadError:
            return
        if used:
            key = self.rng.choice(used).key
            self.lost.add(key)
            there = self.heap.objects.pop(key, None)
            if there is not None and self.rng.random() < 0.5:  # it is there, and damaged
                self.heap.objects[key] = there[:-1] + bytes([there[-1] ^ 1])
            self.counts["lost"] += 1

    def covered(self) -> int:
        """The newest version of which a confirmed snapshot is there."""
        exact, self_chaos = MemoryObjects(Heap()), self.heap.objects
        exact.heap.objects = self_chaos
        healer, newest = Healer(exact, self.run_file, self.rules), 0
        for key in [k for k in self_chaos if keys.is_manifest(k)]:
            found = snapshot.read_manifest(exact, key)
            if found is not None and healer._confirmed(key, *found):
                newest = max(newest, found[0].version)
        return newest

    def write_nonsense(self, process: Process) -> None:
        """Where the next commit belongs: bytes that are none, or a commit that was made for other bits (once)."""
        toy = getattr(process, "toy", None)
        state = None if toy is None else toy.island.follower.state
        if state is None:
            return
        data = b"garbage"
        if not self.wrong_state and self.rng.random() < 0.5:
            self.wrong_state = True
            wrong = Commit(v=state.version, by="f" * 32, nonce="f" * 32, prev=state.prev, state="f" * 64)
            data = wrong.write()
        self.counts["garbage"] += self.heap.exact and self.heap.create(keys.commit(state.version), data)

    def calm(self) -> None:
        self.heap.chaos = False
        if not self.processes:
            self.processes.append(Process(self, "last"))
        state = None
        for _ in range(CALM_STEPS):
            if not self.processes:
                assert state is not None
                self.check_end(state)
                return
            process = self.rng.choice(self.processes)
            self.step(process)
            if process.ended:
                state = process.toy.island.state
        versions = [p.toy.island.follower.state and p.toy.island.version for p in self.processes if p.started]
        raise ViolationError("liveness", f"no end: {len(self.processes)} islands alive, versions {versions}")

    def run(self) -> dict[str, int]:
        """The whole history. Raises ViolationError."""
        with ExitStack() as stack:
            stack.enter_context(self.observed())
            try:
                self.chaos()
                self.calm()
            finally:
                for process in self.processes:
                    process.kill()
        return {**self.counts, "commits": len(self.history) - 1}

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Sees what is applied; commits count each contribution once and whole; in the chaos anybody is suspected."""
        apply, removals, due = Follower.apply, policy.removals, policy._due

        def watched(follower: Follower, raw: bytes, held: Any) -> Any:
            before = follower.state
            applied = apply(follower, raw, held)
            assert before is not None
            self.record(before, follower, raw, applied)
            return applied

        def suspicious(view: Any, watch: Any) -> dict[str, str]:
            found = removals(view, watch)
            for inc in view.state.members if self.heap.chaos else ():
                if inc != view.inc and self.rng.random() < 0.02:
                    found.setdefault(inc, "silent: suspected")
            return found

        def hasty(*arguments: Any) -> bool:
            return due(*arguments) or (self.heap.chaos and self.rng.random() < 0.1)

        with (
            patch.object(Follower, "apply", watched),
            patch.object(policy, "removals", suspicious),
            patch.object(policy, "_due", hasty),
            whole_counts(),
        ):
            yield


def _rules(rng: random.Random, own: bool | None) -> ChainRules:
    codec: Codec = rng.choice([Fp32(), Fp32(), Fp32(), ErrorFeedback(codec=Int8()), LocalResidual(codec=Int8())])
    if rng.random() < 0.3 if own is None else own:
        return toy_rules(None, rng.choice([1, 2]), codec, target_tokens=2 * BLOCKS)
    return toy_rules(BLOCKS, rng.choice([1, 1, 2]), codec)
