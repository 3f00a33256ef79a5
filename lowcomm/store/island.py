"""A member of a run: follows the chain, contributes to it, proposes commits.

    START -> HEAL -> JOIN -> MEMBER -> DONE
               ^               |  removed, snapshot needed, anchor differs, NaN: new incarnation, local work dropped
               +---------------+

Every call asks the store a few things and returns: nothing sleeps inside, the caller polls. Clock, randomness and store
are handed in, so that a checker decides what happens when. The caller holds the local weights (`local_weights.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from lowcomm.store import keys, policy
from lowcomm.store.applied import Applied
from lowcomm.store.commit import Announced, Commit
from lowcomm.store.follower import BrokenRunError, Follower, LostError
from lowcomm.store.healer import Healer
from lowcomm.store.joining import Joining
from lowcomm.store.lookout import Lookout
from lowcomm.store.member_view import MemberView
from lowcomm.store.objects import Objects, StoreError
from lowcomm.store.own_work import OwnWork, Work
from lowcomm.store.removal import removal
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.run_file import RunFile
from lowcomm.store.surroundings import Phase, Surroundings
from lowcomm.store.upkeep import Upkeep
from lowcomm.store.watch import HEALED, LEFT, Watch
from lowcomm.types import PayloadError


class StoreIsland(MemberView):
    """One member. `heal` until it is True and take `state.fragments[i].weights` as local weights; then `poll`."""

    def __init__(self, objects: Objects, run: RunFile, rules: ChainRules, policy: Policy, around: Surroundings) -> None:
        self.objects, self.run, self.rules, self.policy, self.around = objects, run, rules, policy, around
        self.follower = Follower(objects, rules)
        self.lookout = Lookout(objects, rules, policy, self.follower.payloads)
        self.healer = Healer(objects, run, rules)
        self.watch = Watch(around.clock())
        self.expected_s = policy.expected_s
        """Seconds that a round takes here."""
        self._beyond: int | None = None
        """A version whose commit can't be applied: it heals from a snapshot behind it."""
        self._hole_since: float | None = None
        self._names: dict[str, str] = {}
        """Of members, by incarnation."""
        self.phase, self._former = Phase.HEAL, ""
        self.lose("it starts")

    def poll(self) -> list[Applied]:
        """All that a member does beside training: follow, send, ask to join, propose, snapshots, garbage.

        Look at `phase` afterwards: HEAL means that the local work is to be dropped. Raises StoreError (back off and
        poll again), DivergenceError (this machine's arithmetic differs) and BrokenRunError: stop.
        """
        if self.phase == Phase.HEAL:
            return []
        applied = self.follow()
        try:
            self.send()
            if self.phase == Phase.JOIN:
                self.ask()
            if self.phase in (Phase.JOIN, Phase.MEMBER) and self.propose():
                applied += self.follow()
            if self.phase == Phase.MEMBER:
                self.upkeep.go(self.state, self.around.clock())
        except StoreError:
            if not applied:
                raise
        return applied  # never lost to a failed request: local weights must move with the global ones

    def lose(self, why: str) -> None:
        """Go back to HEAL as somebody new: unsent and pending work, error feedback and residual are dropped."""
        self._former = self.inc if self.phase == Phase.MEMBER else self._former
        self.phase, self.why = Phase.HEAL, why
        self.inc = self.around.draw()
        self.work = OwnWork(self.rules, self.inc)
        self.upkeep = Upkeep(self.objects, self.rules, self.policy, self.inc, self.around.clock())
        self.joining = Joining(self.objects, self.rules, self.around)
        self._loaded = False

    def heal(self) -> bool:
        """Newest confirmed snapshot, then the chain. False: not yet, call it again. Raises as `poll`."""
        if not self._loaded:
            state = self.healer.load(self._beyond)
            if state is None:
                return False
            self.follower.begin(state)
            self.watch = Watch(self.around.clock())
            self._loaded = True
        try:
            while (applied := self.follower.next()) is not None:
                self.upkeep.applied(applied, self.state, self.around.clock())
        except LostError as error:
            self.lose(str(error))
            return False
        if self.follower.stuck:
            if self._waits_in_vain():
                self._loaded, self._beyond = False, self.version  # there may be a snapshot behind it
            return False
        if not self.done and self._behind_a_hole():
            return False
        self.healer.tries, self._beyond = 0, None
        self.watch = Watch(self.around.clock())
        former, self._former = self._former, ""
        if former in self.members and not self.done:
            self.put_commit(removal(self, former, f"{HEALED}: {self.why}"))
        self.phase = Phase.DONE if self.done else Phase.JOIN
        return True

    def ask(self) -> None:
        """Ask to join with the present version as base; asks anew, as somebody new, after S versions."""
        if self.inc in self.state.gone or self.joining.is_old(self.version):
            self.inc = self.around.draw()  # a joiner has no work that could be lost
            self.work = OwnWork(self.rules, self.inc)
            self.upkeep.inc = self.inc
            self.joining = Joining(self.objects, self.rules, self.around)
        self.joining.ask(self.inc, self.version, self.expected_s)

    def follow(self) -> list[Applied]:
        """Apply every commit that can be read. Raises as `poll`, but where something was applied before."""
        found: list[Applied] = []
        try:
            while self.phase not in (Phase.HEAL, Phase.DONE) and (applied := self._next()) is not None:
                found.append(self.take(applied))
        except LostError as error:
            self.lose(str(error))
        except StoreError:
            if not found:
                raise
        if self.phase != Phase.HEAL and not found and self._waits_in_vain() and self.healer.newer_than(self.version):
            self.lose(f"a payload that commit {self.version} uses can't be read, a newer snapshot can")
        return found

    def contribute(
        self,
        deltas: Mapping[int, Tensor],
        *,
        tokens: int,
        steps: int,
        blocks: tuple[int, ...] = (),
        expected_s: float | None = None,
        sections: Mapping[str, bytes] | None = None,
    ) -> None:
        """Encode a Delta for each of these fragments (fp32, flat: `local_weights.delta_of`) and queue it for `send`.

        From here on it is out, whatever the store answers. A Delta that can't be encoded (NaN, infinity) makes the
        island heal: its local weights are as bad. tokens: trained since the last contribution to these fragments, by
        which their Deltas weigh; what the run counts are those of fragment 0, and its blocks.
        """
        self.expected_s = self.expected_s if expected_s is None else expected_s
        work = Work(
            tokens=tokens, steps=steps, blocks=blocks, expected_s=self.expected_s, last=self.is_last(blocks),
            sections=sections or {},
        )  # fmt: skip
        if bad := [f for f, delta in deltas.items() if not bool(delta.isfinite().all())]:
            return self.lose(f"the Delta of fragment {bad[0]} is not finite")
        try:
            for fragment, delta in deltas.items():
                self.work.depart(self.state, fragment, delta.detach().cpu(), work, self.objects.part_bytes)
        except PayloadError as error:
            self.lose(str(error))

    def send(self) -> None:
        """Send contributions that are out. Raises StoreError."""
        self.follower.payloads.held.update(self.work.send(self.objects))

    def propose(self) -> bool:
        """Try to create the next commit if the policy says so; what is there then, `follow` applies."""
        now = self.around.clock()
        if self.done or self.follower.stuck or not self._may_propose(now):
            return False
        decision = self._decide(now)
        if decision is None or self.follower.hole() is not None:
            return False  # nothing may be created in a hole: there was another commit
        if self.lookout.altered([u.key for u in decision.used], self.inc):
            self.lose("what it sent lies otherwise in the store")
            return False
        commit = Commit(
            v=self.version, by=self.inc, nonce=self.around.draw(), prev=self.state.prev, state=self.state.digest,
            used=decision.used, scale=decision.scale, admit=decision.admit, remove=decision.remove,
            snapshot=self._new_snapshot(now), stop=decision.stop,
            waited_s=decision.waited_s, wall=self.around.wall(),
        )  # fmt: skip
        self.put_commit(commit)
        return True

    def put_commit(self, commit: Commit) -> None:
        """Only a read counts: whatever this request answers, `follow` takes what it reads, mine or not."""
        self.objects.put_new(keys.commit(commit.v), commit.write())

    def leave(self, *, waits: bool) -> bool:
        """Go with a word: a commit of one's own that removes oneself, so that nobody waits. False: call it again.

        waits: leave what is pending the time to be used; if not, others train its blocks again. Raises as `poll`.
        """
        if self.phase in (Phase.JOIN, Phase.MEMBER):
            self.send()
            self.follow()
        if self.phase == Phase.JOIN:
            self.joining.withdraw()
            return True
        if self.phase == Phase.MEMBER and waits and self.work.pending:
            self.propose()
        elif self.phase == Phase.MEMBER and not self.follower.stuck and self.follower.hole() is None:
            self.put_commit(removal(self, self.inc, LEFT))
            self.follow()
        return self.phase in (Phase.HEAL, Phase.DONE)  # who is removed would heal next

    def finish(self) -> bool:
        """After `done`: whether the last snapshot is announced, or was waited for long enough. Call it again if not."""
        return self.upkeep.finish(self.state, self.around.clock(), self.around.draw)

    def take(self, applied: Applied) -> Applied:
        """What a commit means for this island."""
        now, state, commit = self.around.clock(), self.state, applied.commit
        self.upkeep.applied(applied, state, now)
        self.watch.applied(state, [u.key for u in commit.used] if commit is not None else [], now)
        self.lookout.forget(state)
        removed = {r.inc: r.reason for r in commit.remove} if commit is not None and applied.why is None else {}
        for inc, why in removed.items():
            self.watch.refuse(self._names.get(inc, ""), why, state.version)
        self._names = {inc: m.name for inc, m in state.members.items()}
        departed = self.work.settle(self.me)
        if state.done:
            self.phase = Phase.DONE
        elif self.me is not None:
            self.phase = Phase.MEMBER
            if old := self.work.too_old(state):
                self.lose(f"{old[0]} was not used within {self.rules.stale} versions")
        elif self.phase == Phase.MEMBER:
            self.lose(f"it was removed by commit {state.version - 1}: {removed.get(self.inc, 'no reason')}")
        return dataclasses.replace(applied, departed=departed)

    def _next(self) -> Applied | None:
        """Another commit, with a look at how long requests and folding take."""
        start = self.around.clock()
        applied = self.follower.next()
        self.watch.took(self.around.clock() - start, folded=applied is not None)
        return applied

    def _decide(self, now: float) -> policy.Decision | None:
        """What the next commit is to hold, of contributions that can be decoded."""
        while True:
            view = self.lookout.view(self.state, self.watch, self.inc, now)
            if not policy.is_time(view, self.watch):
                return None
            decision = policy.decide(self.lookout.completed(view, self.watch), self.watch)
            if decision is None or not self.lookout.refuses(self.state, [u.key for u in decision.used]):
                return decision

    def _new_snapshot(self, now: float) -> Announced | None:
        """One that is to be announced."""
        if not self.upkeep.expects(self.state, now):
            return None
        return self.lookout.newest_snapshot(self.state, self.follower.digests)

    def _may_propose(self, now: float) -> bool:
        """Who asks to join proposes only where nobody else does."""
        patient = now - self.watch.waiting_since >= self.policy.patience_s
        return self.phase == Phase.MEMBER or (self.joining.seen and (patient or not self.members))

    def _behind_a_hole(self) -> bool:
        """Whether commits are there behind one that can't be read. Raises BrokenRunError when patience is over."""
        later, now = self.follower.hole(), self.around.clock()
        if later is None:
            self._hole_since = None
            return False
        self._hole_since = now if self._hole_since is None else self._hole_since
        if now - self._hole_since < self.policy.patience_s:
            return True
        if not self.healer.newer_than(self.version):
            raise BrokenRunError(
                f"commit {self.version} is missing, and commit {later} is there: no member may go on from here. Fix: "
                "bring it back, or start a new run from the newest snapshot"
            )
        self._loaded, self._beyond = False, self.version
        return True

    def _waits_in_vain(self) -> bool:
        """Whether patience is over with a committed payload that can't be read.

        Raises BrokenRunError when nobody can have it any more, and no snapshot behind it appeared.
        """
        waited_s, patience_s = self.follower.waited_s(self.around.clock()), self.policy.patience_s
        most_s = 10 * patience_s + 2 * self.policy.snapshot_every_s
        if waited_s >= 3 * most_s or (waited_s >= most_s and not self.healer.newer_than(self.version)):
            raise BrokenRunError(
                f"version {self.version + 1} can't be made: a payload that commit {self.version} uses is gone. Fix: "
                "start a new run from the newest snapshot"
            )
        return waited_s >= patience_s
