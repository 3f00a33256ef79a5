"""Looks at what lies in the store for the next commit: contributions, requests, a wish to stop, snapshots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lowcomm.store import judge, keys, snapshot, text, valid
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Announced
from lowcomm.store.contribution import Contribution, Damaged
from lowcomm.store.objects import Objects
from lowcomm.store.payloads import Payloads
from lowcomm.store.policy import View
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.run_file import JoinRequest
from lowcomm.store.watch import Watch
from lowcomm.types import PayloadError


class Lookout:
    """Reads each object once; a listing that is behind makes a contribution enter one commit later."""

    def __init__(self, objects: Objects, rules: ChainRules, policy: Policy, payloads: Payloads) -> None:
        self.objects, self.rules, self.policy, self.payloads = objects, rules, policy, payloads
        self.stop = False
        self._requests: dict[str, JoinRequest | None] = {}
        """By key; None: it is none."""
        self._verdicts: dict[str, str | None] = {}
        """By key: why a contribution can't be used."""
        self._read_back: set[str] = set()
        """Keys of one's own contributions that were compared with what lies in the store."""

    def view(self, state: ChainState, watch: Watch, inc: str, now: float) -> View:
        """What there is for the next commit. Raises StoreError."""
        held, bad = self.contributions(state, watch, now)
        return View(state=state, rules=self.rules, policy=self.policy, inc=inc, now=now, held=held, bad=bad)

    def completed(self, view: View, watch: Watch) -> View:
        """With those who ask to join, and whether somebody asks to stop: read only when a commit may be made.

        Raises StoreError.
        """
        requests = self.requests(view.state, watch, view.now)
        self.stop = self.stop or self.objects.get_range(keys.STOP, 0, 1) is not None
        return dataclasses.replace(view, requests=requests, stop=self.stop and not view.state.stopping)

    def contributions(self, state: ChainState, watch: Watch, now: float) -> tuple[list[Contribution], dict[str, str]]:
        """Usable ones of members, each one's next without a gap; and members whose next can't be used, with why."""
        there = self._listed(state, watch, now)
        held: list[Contribution] = []
        bad: dict[str, str] = {}
        for inc in sorted({inc for inc, _ in there}):
            seq, lease = next_of(state, inc)
            while (key := there.get((inc, seq))) is not None:
                one = self.payloads.fetch(key)
                if one is None:
                    break
                if (why := self._verdict(state, key, one, lease)) is not None:
                    bad[inc] = why
                    break
                assert isinstance(one, Contribution)
                lease -= set(one.header.blocks)
                held.append(one)
                seq += 1
        return held, bad

    def refuses(self, state: ChainState, chosen: Sequence[str]) -> bool:
        """Decode what a commit is to use; whether something can't be used, so that it must be decided again.

        Only who is about to commit does so, as it costs as much as using it.
        """
        for key in chosen:
            one = self.payloads.held.get(key)
            if key not in self._verdicts and isinstance(one, Contribution):
                self._verdicts[key] = judge.refusal(state, one, self.rules)
        return any(self._verdicts.get(key) is not None for key in chosen)

    def altered(self, chosen: Sequence[str], inc: str) -> bool:
        """Whether one's own contribution lies in the store otherwise than it was sent: the others read it from there.

        Read back once, by who is about to commit it. Raises StoreError.
        """
        for key in chosen:
            parts, held = keys.read_delta(key), self.payloads.held
            if parts is None or parts.inc != inc or key in self._read_back:
                continue
            sent = held.pop(key)
            there = self.payloads.fetch(key)
            if there is None:
                held[key] = sent  # a store that lags behind shows it later
            elif there.sha256 != sent.sha256 or isinstance(there, Damaged):
                return True
            self._read_back.add(key)
        return False

    def requests(self, state: ChainState, watch: Watch, now: float) -> list[JoinRequest]:
        """Of those who may be admitted, in the order of incarnations."""
        found: dict[str, JoinRequest] = {}
        for one in self.objects.list(keys.JOINS, keys.since(keys.JOINS, state.version - self.rules.stale)):
            parts = keys.read_join(one.key)
            if parts is None or not may_join(state, parts[1]) or parts[0] > state.version:
                continue
            if one.key not in self._requests:
                raw = self.objects.get_range(one.key, 0, text.MOST_BYTES + 1)
                if raw is None:
                    continue
                self._requests[one.key] = _request(raw, parts, self.rules.run_id)
            request = self._requests[one.key]
            if request is not None:
                watch.saw(request.inc, now)
                found[request.inc] = request
        return [found[inc] for inc in sorted(found)]

    def newest_snapshot(self, state: ChainState, digests: dict[int, str]) -> Announced | None:
        """A snapshot that is whole, newer than the last announced one, and of a version that this island knows."""
        last = state.snapshots[-1].version if state.snapshots else 0
        listed = [one.key for one in self.objects.list(keys.SNAPSHOTS) if keys.is_manifest(one.key)]
        for key in sorted(listed, reverse=True):
            version = keys.version_of_snapshot(key)
            if version is None or not last < version <= state.version or version not in digests:
                continue
            read = snapshot.read_manifest(self.objects, key)
            if read is not None and (read[0].version, read[0].state) == (version, digests[version]):
                return Announced(version=version, key=key, sha256=read[1])
        return None

    def forget(self, state: ChainState) -> None:
        """Drop what is older than S versions."""
        oldest = state.version - self.rules.stale
        self._read_back = {k for k in self._read_back if (keys.base_of(k) or 0) >= oldest}
        self._requests = {k: r for k, r in self._requests.items() if (keys.base_of(k) or 0) >= oldest}
        self._verdicts = {k: v for k, v in self._verdicts.items() if (keys.base_of(k) or 0) >= oldest}

    def _listed(self, state: ChainState, watch: Watch, now: float) -> dict[tuple[str, int], str]:
        """Keys of members' unsettled contributions, by incarnation and number."""
        there: dict[tuple[str, int], str] = {}
        for one in self.objects.list(keys.DELTAS, keys.since(keys.DELTAS, state.version - self.rules.stale)):
            parts = keys.read_delta(one.key)
            if parts is None or parts.base > state.version:
                continue
            if is_unsettled(state, parts.inc, parts.seq):
                there.setdefault((parts.inc, parts.seq), one.key)
                watch.saw(one.key, now)
                watch.heard(parts.inc, now)
        return there

    def _verdict(self, state: ChainState, key: str, one: Contribution | Damaged, lease: set[int]) -> str | None:
        if isinstance(one, Damaged):
            return one.why
        try:
            valid.check_contribution(state, one.header, self.rules)
            valid.check_blocks({one.header.inc: set(lease)}, one.header, self.rules)
        except PayloadError as error:
            return str(error)
        return self._verdicts.get(key)


def may_join(state: ChainState, inc: str) -> bool:
    """Nobody who is a member, and nobody who was removed."""
    return inc not in state.members and inc not in state.gone


def next_of(state: ChainState, inc: str) -> tuple[int, set[int]]:
    """Number of a member's next contribution, and the blocks that it may hold."""
    return state.members[inc].settled + 1, set(state.members[inc].lease)


def is_unsettled(state: ChainState, inc: str, seq: int) -> bool:
    """Whether a contribution is a member's, and no commit has used it."""
    return inc in state.members and seq > state.members[inc].settled


def _request(raw: bytes, parts: tuple[int, str], run_id: str) -> JoinRequest | None:
    try:
        request = JoinRequest.read(raw)
    except PayloadError:
        return None
    fits = (request.base, request.inc, request.run_id) == (*parts, run_id)
    return request if fits else None
