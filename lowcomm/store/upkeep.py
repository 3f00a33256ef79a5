"""Snapshots, published versions and garbage: when one is due, whose turn it is, and the last one at the run's end."""

from __future__ import annotations

from collections.abc import Callable

from lowcomm.store import garbage, keys, snapshot
from lowcomm.store.applied import Applied
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.objects import Objects
from lowcomm.store.publisher import Publisher
from lowcomm.store.rules import ChainRules, Policy


class Upkeep:
    """Of one incarnation."""

    def __init__(self, objects: Objects, rules: ChainRules, policy: Policy, inc: str, now: float) -> None:
        self.objects, self.rules, self.policy, self.inc = objects, rules, policy, inc
        self.bytes_since = 0
        """Of commits and what they used since the last snapshot that was announced."""
        self.since = now
        """When it was announced."""
        self.due_since: float | None = None
        self.writer: snapshot.SnapshotWriter | None = None
        self.garbage_due = False
        """Whether this island announced the newest snapshot, and has not deleted since."""
        self.made_last = False
        """Whether the last commit that was applied is this island's."""
        self.deleted = 0
        self.publisher = None if policy.publish_every is None else Publisher(objects, rules, policy)
        self._written = False
        """Whether this island has stored one that nobody announced yet."""
        self._done_since: float | None = None

    def applied(self, applied: Applied, state: ChainState, now: float) -> None:
        """A commit was applied."""
        self.bytes_since += applied.nbytes
        if self.publisher is not None:
            self.publisher.applied(state, self.inc, now)
        commit = applied.commit
        self.made_last = commit is not None and applied.why is None and commit.by == self.inc
        shot = None if commit is None or applied.why is not None else commit.snapshot
        if shot is not None and state.snapshots and state.snapshots[-1] == shot:
            self.bytes_since, self.since, self.due_since, self._written = 0, now, None, False
            self.garbage_due = self.made_last

    def go(self, state: ChainState, now: float) -> None:
        """Write a part of a snapshot, begin one, publish a version, or delete garbage. Raises StoreError."""
        if self.writer is not None:
            if self.writer.go(self.objects):
                self.writer, self.bytes_since, self.since, self.due_since = None, 0, now, None
                self._written = True
        elif self._due(state, now):
            self.writer = snapshot.SnapshotWriter(state, self.inc, self.rules, self.objects.part_bytes)
        if self.publisher is not None:
            self.publisher.go(self.inc, now)
        if self.garbage_due:
            self.deleted += garbage.collect(self.objects, state, self.rules)
            if self.publisher is not None:
                self.deleted += self.publisher.collect(state.horizon(self.rules.keep))
            self.garbage_due = False

    def expects(self, state: ChainState, now: float) -> bool:
        """Whether a snapshot may have been stored that is not announced yet: then it is worth a listing."""
        return self._written or self._large(state, now)

    def finish(self, state: ChainState, now: float, draw: Callable[[], str]) -> bool:
        """After the end: whether the last version is announced, or was waited for long enough. Raises StoreError.

        The island that made it stores it; a commit after the end changes nothing, but confirms the snapshot.
        """
        if self.objects.get_range(keys.commit(state.version), 0, 1) is not None:
            return True
        self._done_since = now if self._done_since is None else self._done_since
        if not self.made_last:
            return now - self._done_since >= self.policy.patience_s
        if self.publisher is not None and not self.publisher.finish(state, self.inc, now):
            return False
        if self.writer is None or self.writer.announced.version != state.version:
            self.writer = snapshot.SnapshotWriter(state, self.inc, self.rules, self.objects.part_bytes)
        if self.writer.go(self.objects):
            last = Commit(
                v=state.version, by=self.inc, nonce=draw(), prev=state.prev, state=state.digest,
                snapshot=self.writer.announced,
            )  # fmt: skip
            self.objects.put_new(keys.commit(state.version), last.write())
        return False

    def _due(self, state: ChainState, now: float) -> bool:
        last = state.snapshots[-1].version if state.snapshots else 0
        if state.version == last or self.inc not in state.members:
            return False
        if not self._large(state, now):
            return False
        self.due_since = now if self.due_since is None else self.due_since
        order = sorted(state.members)
        mine = order[state.version % len(order)] == self.inc
        return mine or now - self.due_since >= self.policy.patience_s

    def _large(self, state: ChainState, now: float) -> bool:
        """Whether the commits since the last one are more than it, or it is too long ago."""
        late = now - self.since >= self.policy.snapshot_every_s
        return late or self.bytes_since > snapshot.state_bytes(state)
