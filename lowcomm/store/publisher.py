"""Publishes versions for machines that follow a run, from a member: whose turn it is, which base, patch or anchor.

Version V is due when V is a multiple of `publish_every`, and at the end. The members' turn goes round; the next one
steps in after each `patience_s`. A patch leads from the newest version that is published; who does not hold the bits of
that one (it has just healed) leaves it to the others for another patience, and publishes an anchor then. Each
`anchor_every`-th version has an anchor beside its patch. Nothing of this touches the chain.

Memory: 2 bytes per parameter for each of at most three versions. Requests: a listing, two puts for each patch or anchor
(and one for each further part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lowcomm.store.chain_state import ChainState
from lowcomm.store.objects import Objects
from lowcomm.store.parts import Upload
from lowcomm.store.patch_code import Bits, Packed, bits_of, digest_of, pack_anchor, pack_patch
from lowcomm.store.published import PATCHES, Head, HeadKey, after, garbage, read_key, upload_of
from lowcomm.store.rules import ChainRules, Policy

MOST_HELD = 2
"""Versions whose bits are held beside the newest that is known to be published."""


@dataclass(frozen=True, kw_only=True)
class Due:
    """A version that is to be published."""

    version: int
    since: float
    rank: int
    """How many members come before this one."""
    tokens: int
    last: bool


class Publisher:
    """Of one incarnation. `policy.publish_every` is set."""

    def __init__(self, objects: Objects, rules: ChainRules, policy: Policy) -> None:
        self.objects, self.rules, self.policy = objects, rules, policy
        self.held: dict[int, list[Bits]] = {}
        self.due: Due | None = None
        self.published = 0
        """Heads that this member created."""
        self._known: int | None = None
        """The newest version that is known to be published."""
        self._uploads: list[Upload] = []
        self._uploading: int | None = None

    def applied(self, state: ChainState, inc: str, now: float) -> None:
        """A version was folded."""
        every = self.policy.publish_every
        assert every is not None
        if state.version == 0 or (state.version % every and not state.done):
            return
        order = sorted(state.members)
        turn = state.version // every % max(1, len(order))
        rank = (order.index(inc) - turn) % len(order) if inc in order else len(order)
        self.held[state.version] = [bits_of(f.weights) for f in state.fragments]
        self.due = Due(version=state.version, since=now, rank=rank, tokens=state.tokens_done, last=state.done)
        self._forget()

    def go(self, inc: str, now: float) -> None:
        """Go on with an upload, or begin the one that is due. Raises StoreError."""
        if (
            not self._uploads
            and self.due is not None
            and now - self.due.since >= self.due.rank * self.policy.patience_s
        ):
            self._begin(self.due, inc, now)
        while self._uploads:
            if not self._uploads[0].step(self.objects):
                return
            if self._uploads[0].done:
                self._uploads.pop(0)
                self.published += 1
        self._known, self._uploading = self._uploading or self._known, None
        self._forget()

    def finish(self, state: ChainState, inc: str, now: float) -> bool:
        """By the member that ended the run: whether the last version is published. Raises StoreError."""
        if self.due is not None and self.due.version == state.version:
            self.due = Due(version=state.version, since=now, rank=0, tokens=state.tokens_done, last=True)
        self.go(inc, now)
        return not self._uploads and self.due is None

    def collect(self, horizon: int) -> int:
        """Delete published versions that nobody needs behind this one; how many objects. Raises StoreError."""
        gone = garbage(self.objects.list(PATCHES), horizon)
        if gone:
            self.objects.delete(gone)
        return len(gone)

    def _begin(self, due: Due, inc: str, now: float) -> None:
        """Find out what is published, and make what is not."""
        listed = self.objects.list(PATCHES, None if self._known is None else after(self._known - 1))
        heads = [key for one in listed if (key := read_key(one.key)) is not None]
        newest = max((key.version for key in heads), default=None)
        if newest is not None and newest >= due.version:
            self._known, self.due = newest, None
            self._forget()
            return
        base = self.held.get(newest) if newest is not None else None
        waits = newest is not None and base is None and not due.last
        if waits and now - due.since < (due.rank + 1) * self.policy.patience_s:
            return
        self._known, self.due, self._uploading = newest, None, due.version
        new = self.held[due.version]
        if newest is not None and base is not None:
            self._queue(due, HeadKey(due.version, newest), pack_patch(base, new), new, inc)
        if base is None or self._wants_anchor(due.version):
            self._queue(due, HeadKey(due.version, None), pack_anchor(new), new, inc)

    def _queue(self, due: Due, key: HeadKey, packed: Packed, new: Sequence[Bits], inc: str) -> None:
        head = Head(
            run_id=self.rules.run_id, key=key, digest=digest_of(new), form=packed.form, changed=packed.changed,
            sizes=packed.sizes, tokens=due.tokens, last=due.last,
        )  # fmt: skip
        self._uploads.append(upload_of(head, packed, inc, self.objects.part_bytes))

    def _wants_anchor(self, version: int) -> bool:
        every = self.policy.publish_every
        assert every is not None
        return version // every % self.policy.anchor_every == 0

    def _forget(self) -> None:
        """Drop bits that no patch of this member will begin or end with."""
        kept = {self._known, self._uploading, *sorted(self.held)[-MOST_HELD:]}
        self.held = {v: bits for v, bits in self.held.items() if v in kept}
