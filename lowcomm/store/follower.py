"""Follows the chain: reads commit after commit and what it uses, folds it, and notices when something is not right."""

from __future__ import annotations

import platform

import torch

from lowcomm.store import fold, keys, text, valid
from lowcomm.store.applied import Applied
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Commit
from lowcomm.store.objects import Objects
from lowcomm.store.payloads import Payloads
from lowcomm.store.rules import ChainRules
from lowcomm.types import DivergenceError, LowcommError, PayloadError

MOST_AGAINST = 3
"""Versions in a row of which the commit was made for other bits than this machine folds, before it is the wrong one."""


class BrokenRunError(LowcommError):
    """The run can't go on from this store: a version can't be made, or history was changed (exit code 1)."""


class LostError(Exception):
    """This island must heal; the text says why."""


class Follower:
    """What an island has folded. `state` is None before something was loaded."""

    def __init__(self, objects: Objects, rules: ChainRules) -> None:
        self.objects, self.rules = objects, rules
        self.payloads = Payloads(objects, rules)
        self.state: ChainState | None = None
        self.stuck = False
        """Whether a committed payload can't be read, for now or for good."""
        self.digests: dict[int, str] = {}
        """Of the versions that were folded here and that somebody may announce."""
        self._stuck: tuple[int, float] | None = None
        """The version whose commit can't be applied, and since when on the island's clock."""
        self._doubted: dict[int, str] = {}
        """By version: this island's digest when a commit had another one."""
        self._against: set[int] = set()
        """Versions in a row whose commits were made for other bits than this machine has."""
        self._stepped = False
        """Whether weights were folded here since a version was loaded: then agreement says something."""
        self._broken = 0

    def begin(self, state: ChainState) -> None:
        """Go on from a version that was loaded."""
        self.state, self.stuck, self._stepped = state, False, False
        self.digests = {state.version: state.digest}

    def next(self) -> Applied | None:
        """Apply one more commit; None: there is none to be read, or the run is over. Raises StoreError, LostError."""
        state = self.state
        assert state is not None
        if state.done:
            return None
        raw = self.objects.get_range(keys.commit(state.version), 0, text.MOST_BYTES + 1)
        if raw is None:
            self.stuck = False
            return None
        self._compare(state, raw)
        held = self.payloads.fetch_all(valid.keys_of(state, raw, self.rules))
        self.stuck = held is None or valid.damaged(raw, held) is not None
        if held is None or self.stuck:
            return None
        return self.apply(raw, held)

    def apply(self, raw: bytes, held: valid.Held) -> Applied:
        """Fold these bytes."""
        assert self.state is not None
        folded = fold.fold(self.state, raw, held, self.rules)
        state = self.state = folded.state
        self._stepped = self._stepped or bool(folded.applied.changes)
        self.digests[state.version] = state.digest
        last = state.snapshots[-1].version if state.snapshots else 0
        self.digests = {v: d for v, d in self.digests.items() if v >= last}
        self.payloads.drop(state.version - self.rules.stale, held)
        return folded.applied

    def hole(self) -> int | None:
        """A later commit that is there where the next one can't be read: history has a hole, or the store lags behind.

        None: the chain ends here; what is no commit of its place says nothing. Raises StoreError.
        """
        assert self.state is not None
        here = keys.commit(self.state.version)
        for one in self.objects.list(keys.COMMITS, here):
            if self._is_commit(one.key):
                missing = self.objects.get_range(here, 0, 1) is None
                return keys.version_of_commit(one.key) if missing else None
        return None

    def _is_commit(self, key: str) -> bool:
        raw = self.objects.get_range(key, 0, text.MOST_BYTES + 1)
        try:
            return raw is not None and Commit.read(raw).v == keys.version_of_commit(key)
        except PayloadError:
            return False

    def waited_s(self, now: float) -> float:
        """Seconds for which a committed payload could not be read; 0: nothing is missing. It is never left out."""
        assert self.state is not None
        if not self.stuck:
            self._stuck = None
            return 0.0
        if self._stuck is None or self._stuck[0] != self.state.version:
            self._stuck = (self.state.version, now)
        return now - self._stuck[1]

    def _compare(self, state: ChainState, raw: bytes) -> None:
        """Whether the commit was made for the bits that are here, and after the commit that was applied here."""
        theirs = valid.disagreement(state, raw)
        if theirs is None:
            if valid.agrees(state, raw):
                self._against = set() if self._stepped else self._against
            elif valid.other_past(state, raw):
                self._check_past(state)
            return
        self._against.add(state.version)
        if len(self._against) >= MOST_AGAINST:
            raise DivergenceError(
                f"version {state.version} has the digest {theirs} for the others and {state.digest} here (torch "
                f"{torch.__version__}, {platform.processor() or platform.machine()}): this machine folds to other "
                "bits. Fix: take the torch version and the kind of CPU of the others (lowcomm status names them)"
            )
        if self._doubted.get(state.version) != state.digest:
            self._doubted[state.version] = state.digest
            raise LostError(f"commit {state.version} was made for {theirs[:12]}, here is {state.digest[:12]}")
        # the same bits from a snapshot: the commit is wrong, and changes nothing

    def _check_past(self, state: ChainState) -> None:
        """A commit names another one before it than was applied here: nonsense, unless the store has changed it."""
        raw = self.objects.get_range(keys.commit(state.version - 1), 0, text.MOST_BYTES + 1)
        if raw is None or text.sha256(raw) == state.prev:
            return
        self._broken += 1
        if self._broken > 1:
            raise BrokenRunError(
                f"commit {state.version - 1} was changed in the store again after it was applied: the store breaks "
                "its promise that a key is created once. Fix: start a new run in a store that passes the probe"
            )
        raise LostError(f"commit {state.version - 1} was changed in the store after it was applied")
