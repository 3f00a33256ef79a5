"""The chain as a member follows it: polls beside training, local weights that move along, what came for the log."""

from __future__ import annotations

import time

from torch import Tensor

from lowcomm.store.applied import Applied
from lowcomm.store.chain_state import ChainState
from lowcomm.store.island import Phase, StoreIsland
from lowcomm.store.objects import StoreError
from lowcomm.storerun.beside import Beside
from lowcomm.storerun.hands import Hands
from lowcomm.storerun.member_journal import MemberJournal
from lowcomm.types import LowcommError

SLICE_S = 0.2
"""A wait looks for signals so often."""
LEAVE_S = 10.0
"""Whoever was told to stop says goodbye within it, or goes without."""
POLLS_S = 1.0
"""What others may need beyond the grace time to commit what is pending."""


class Chain:
    """While a poll is under way (`busy`) the island belongs to it: then `known` is what may be looked at."""

    def __init__(self, island: StoreIsland, hands: Hands, journal: MemberJournal) -> None:
        self.island, self.hands, self.journal = island, hands, journal
        self.known: ChainState | None = None
        """The version that the local weights are at; None: it has not healed yet."""
        self.blocked_s = 0.0
        """Seconds without training: waiting for others, for the store, for admission."""
        self.round_steps = 0
        """Inner steps since the last contribution."""
        self.sent_steps = 0
        """Inner steps of contributions that are in no commit yet."""
        self.looked_s = 0.0
        self._waits = 0
        self._poll: Beside[list[Applied]] = Beside(island.poll)

    @property
    def fragments(self) -> range:
        """Their numbers."""
        return range(len(self.island.rules.layouts))

    @property
    def busy(self) -> bool:
        """Whether a poll is under way and has not come back."""
        return self._poll.busy and not self._poll.ready

    @property
    def signalled(self) -> bool:
        """Whether this process was asked to stop."""
        return self.hands.run.stop.signal is not None

    def become(self) -> None:
        """Heal: somebody new, with the global weights. One try; `known` is None or old until it succeeds."""
        why, island = self.island.why, self.island
        try:
            healed = island.heal()
        except StoreError as error:
            self.journal.trouble(error)
            healed = False
        if not healed:
            self.wait()
            return
        self.known, self._waits = island.state, 0
        self.round_steps = self.sent_steps = 0
        for inc, member in island.members.items():
            self.journal.names.know(inc, member.name)
        self.hands.take(self.weights())
        self.journal.note(f"healed at version {island.version} as {island.inc[:6]}: {why}")

    def look(self) -> bool:
        """Poll, and wait for it; whether anything came."""
        self.begin()
        return self.collect()

    def begin(self) -> None:
        """Start to poll beside training, if no poll is under way."""
        if not self._poll.busy:
            self.looked_s = time.monotonic()
        self._poll.start()

    def collect(self) -> bool:
        """Take over what the poll brought, waiting for it if need be; whether anything came. Nothing without a poll."""
        if not self._poll.busy:
            return False
        start, before, island = time.monotonic(), self.known, self.island
        try:
            applied = self._poll.collect()
        except StoreError as error:
            self.journal.trouble(error)
            applied = []
        self.blocked_s += time.monotonic() - start
        if island.phase is Phase.HEAL or before is None:
            return True
        moved = island.state is not before
        if moved:
            self._settle()
        for number, one in enumerate(applied):
            led_from = before if number == 0 else None
            self.journal.applied(one, led_from, island.state, inc=island.inc, blocked_s=self.blocked_s)
        if moved or applied:
            self._waits = 0
        return moved or bool(applied)

    def _settle(self) -> None:
        """Bring local weights to the version that the chain has come to."""
        self.known = self.island.state
        outstanding = [self.island.outstanding(f) for f in self.fragments]
        if outstanding[0] is None:
            self.sent_steps = 0
        self.hands.rebase(self.weights(), outstanding, self.known.fragments[0].version)

    def weights(self) -> list[Tensor]:
        """The global weights by fragment, of the version that is known."""
        assert self.known is not None
        return [f.weights for f in self.known.fragments]

    def finished(self) -> bool:
        """After the end: whether the last snapshot is there, or was waited for long enough."""
        try:
            return self.island.finish()
        except StoreError as error:
            self.journal.trouble(error)
            return False

    def leave(self) -> bool:
        """Go with a word, in at most LEAVE_S, however the store answers; whether the others know."""
        island, start = self.island, time.monotonic()
        settles_s = 0.0 if self.known is None else island.watch.grace_s(self.known, island.policy) + POLLS_S

        def say() -> bool:
            while not (done := self._goodbye(waits=time.monotonic() - start < settles_s)):
                if time.monotonic() - start >= LEAVE_S:
                    break
                time.sleep(island.objects.poll_first_s)
            return done

        while self.busy and time.monotonic() - start < LEAVE_S:
            time.sleep(SLICE_S / 10)
        if self.busy or self.known is None:
            return False
        saying = Beside(say)
        try:
            self.collect()
            if island.phase is Phase.HEAL:  # of whom it was nobody knows
                return False
            saying.start()
            while not saying.ready and time.monotonic() - start < LEAVE_S + SLICE_S:
                time.sleep(SLICE_S / 10)
            return saying.ready and saying.collect()
        except LowcommError as error:  # it stops all the same
            self.journal.note(f"warning: {error}")
            return False

    def _goodbye(self, *, waits: bool) -> bool:
        try:
            return self.island.leave(waits=waits)
        except StoreError as error:
            self.journal.trouble(error)
            return False

    def wait(self) -> None:
        """Longer from time to time while nothing comes, but not beyond the moment at which a commit may be made."""
        objects = self.island.objects
        left_s = min(objects.poll_first_s * 1.5**self._waits, objects.poll_most_s)
        due_s = self.island.watch.due_at - self.island.around.clock()
        left_s = min(left_s, due_s) if due_s > 0 else left_s
        self._waits += 1
        start = time.monotonic()
        self.hands.idle()
        while left_s > 0 and not self.signalled:
            time.sleep(min(SLICE_S, left_s))
            left_s -= SLICE_S
        self.blocked_s += time.monotonic() - start
