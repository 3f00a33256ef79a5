"""The loop of a member: heal, join, train what is leased, contribute, follow, until the chain says that all is done."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from torch import Tensor

from lowcomm.config import RunConfig
from lowcomm.store.chain_state import ChainState
from lowcomm.store.island import Phase, StoreIsland
from lowcomm.store.objects import StoreError
from lowcomm.storerun.blocks import BlockSizes
from lowcomm.storerun.hands import Hands
from lowcomm.storerun.member_journal import MemberJournal
from lowcomm.storerun.plan import tokens_per_step
from lowcomm.storerun.said import LOG, said_of
from lowcomm.types import SyncError

SLICE_S = 0.2
"""A wait looks for signals so often."""
LOOKS_PER_ROUND = 4
MOST_DIVERGED = 3
"""Rounds in a row that may end in values that are not finite."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A round to train."""

    blocks: tuple[int, ...]
    """Empty: of the island's own text."""
    steps: int
    """Of each block, or in all."""


class Member:
    """One island, on its first rank. islands: the number that the run was made for."""

    def __init__(
        self,
        config: RunConfig,
        island: StoreIsland,
        hands: Hands,
        journal: MemberJournal,
        *,
        islands: int,
        sizes: BlockSizes | None,
    ) -> None:
        self.config, self.island, self.hands, self.journal = config, island, hands, journal
        self.islands, self.sizes = islands, sizes
        self.blocked_s = 0.0
        """Seconds without training: waiting for others, for the store, for admission."""
        self._round_s = 0.0
        self._waits = 0
        self._looked_s = 0.0
        self._since = 0
        """Inner steps trained that are in no commit yet."""
        self._diverged = 0
        self.known: ChainState | None = None
        """The version that the local weights are at; None: it has not healed yet."""
        self._evaluated = 0

    @property
    def fragments(self) -> range:
        """Their numbers."""
        return range(len(self.island.rules.layouts))

    def live(self) -> bool:
        """Train to the run's end: True; False: a signal came, and what was contributed stays."""
        island = self.island
        while not (island.phase is not Phase.HEAL and island.done):
            if self._signalled():
                return False
            if island.phase is Phase.HEAL:
                self._become()
            elif (work := self._work()) is not None:
                self._train(work)
            elif not self._look():
                self._wait()
        while not self._finished():
            if self._signalled():
                return False
            self._wait()
        self.hands.take(self._weights())
        return True

    # ------------------------------------------------------------------------------------------ the chain

    def _become(self) -> None:
        """Heal: somebody new, with the global weights."""
        why = self.island.why
        try:
            healed = self.island.heal()
        except StoreError as error:
            self.journal.trouble(error)
            healed = False
        if not healed:
            self._wait()
            return
        self.known, self._since, self._waits = self.island.state, 0, 0
        for inc, member in self.island.members.items():
            self.journal.names.know(inc, member.name)
        self.hands.take(self._weights())
        self.journal.note(f"healed at version {self.island.version} as {self.island.inc[:6]}: {why}")

    def _look(self) -> bool:
        """Follow the chain, ask, propose; whether anything came."""
        before, island = self.known, self.island
        self._looked_s = time.monotonic()
        try:
            applied = island.poll()
        except StoreError as error:
            self.journal.trouble(error)
            applied = []
        if island.phase is Phase.HEAL or before is None:
            return True
        moved = island.state is not before
        if moved:
            self._settle()
            self.known = island.state
        for number, one in enumerate(applied):
            led_from = before if number == 0 else None
            self.journal.applied(one, led_from, island.state, inc=island.inc, blocked_s=self.blocked_s)
        if moved or applied:
            self._waits = 0
            self._evaluate_if_due()
        return moved or bool(applied)

    def _settle(self) -> None:
        """Bring local weights to the version that the chain has come to."""
        outstanding = [self.island.outstanding(f) for f in self.fragments]
        if all(o is None for o in outstanding):
            self._diverged, self._since = 0, 0
        self.hands.rebase(self._weights(), outstanding, self.island.state.fragments[0].version)

    def _finished(self) -> bool:
        try:
            return self.island.finish()
        except StoreError as error:
            self.journal.trouble(error)
            return False

    def _weights(self) -> list[Tensor]:
        return [f.weights for f in self.island.state.fragments]

    # ------------------------------------------------------------------------------------------ training

    def _work(self) -> Work | None:
        """What can be trained now."""
        island = self.island
        if island.phase is not Phase.MEMBER or not all(island.may_contribute(f) for f in self.fragments):
            return None
        if island.closing and not island.lease:
            self._send_rest()
            return None
        if self.sizes is None:
            return None if island.closing else Work(blocks=(), steps=self.config.sync.every)
        blocks = island.lease[: self.sizes.per_round]
        return Work(blocks=blocks, steps=self.sizes.steps) if blocks else None

    def _train(self, work: Work) -> None:
        """A round, and its contribution. Ends early where the island must heal, is stopped or diverges."""
        start, tokens, done = time.monotonic(), 0, 0
        every = self.config.sync.every
        for block in work.blocks or (None,):
            for number in range(work.steps):
                if self._signalled():
                    return
                stepped = self.hands.step(block, number, self._progress())
                if not math.isfinite(stepped.loss):
                    self._diverge(f"the loss of inner step {number} is {stepped.loss}")
                    return
                self.journal.step(stepped.loss)
                tokens, done, self._since = tokens + stepped.tokens, done + 1, self._since + 1
                self._log_if_due()
                self._send_fragments(done, every)
                if self._look_is_due():
                    self._look()
                    if self.island.phase is not Phase.MEMBER:
                        return
        self._round_s = time.monotonic() - start
        self._contribute((0,), tokens=tokens, steps=done, blocks=work.blocks)
        self._looked_s = -math.inf

    def _send_fragments(self, done: int, every: int) -> None:
        """Contribute to the fragments but the first whose turn comes inside the round; the first's is its end."""
        count = len(self.fragments)
        due = [f for f in self.fragments[1:] if f * every // count == done]
        for f in due:
            if self.island.may_contribute(f):
                self._contribute((f,), tokens=0, steps=0, blocks=())

    def _send_rest(self) -> None:
        """The run closes: send what is held, for the last time."""
        for f in self.fragments:
            if self.island.must_finish(f) and self.island.may_contribute(f):
                self._contribute((f,), tokens=0, steps=0, blocks=())

    def _contribute(self, fragments: tuple[int, ...], *, tokens: int, steps: int, blocks: tuple[int, ...]) -> None:
        island, round_s = self.island, self._round_s or None
        deltas = {f: self.hands.delta(f) for f in fragments}
        said = {} if 0 not in fragments else {LOG: said_of(self.journal.mean_loss(), round_s)}
        island.contribute(deltas, tokens=tokens, steps=steps, blocks=blocks, expected_s=round_s, sections=said)
        if island.phase is Phase.HEAL:
            self._count_divergence(island.why)
            return
        everything = not self.config.sync.codec.holds_back
        for f in fragments:
            self.hands.departed(f, island.state.fragments[f].weights, island.outstanding(f), everything)

    def _diverge(self, why: str) -> None:
        self._count_divergence(why)
        self.island.lose(why)

    def _count_divergence(self, why: str) -> None:
        self._diverged += 1
        self.journal.note(f"warning: {why}: the work since version {self.island.version} is dropped")
        if self._diverged >= MOST_DIVERGED:
            raise SyncError(
                f"{self._diverged} rounds in a row ended in values that are not finite ({why}). Fix: lower the "
                "learning rate, or look at the text"
            )

    def _progress(self) -> int:
        """The inner step of a run of fixed islands that the next one stands for: learning rates follow it."""
        state, per_step = self.island.state, tokens_per_step(self.config)
        done = state.tokens_done / (self.islands * per_step)
        return int(done + self._since * max(1, len(state.members)) / self.islands)

    # ------------------------------------------------------------------------------------------ time

    def _signalled(self) -> bool:
        return self.hands.run.stop.signal is not None

    def _look_is_due(self) -> bool:
        """Whether a share of a round has passed since the last look."""
        share_s = self._round_s / LOOKS_PER_ROUND
        return time.monotonic() - self._looked_s > max(share_s, self.island.objects.poll_first_s)

    def _wait(self) -> None:
        """Longer from time to time while nothing comes."""
        objects = self.island.objects
        left_s = min(objects.poll_first_s * 1.5**self._waits, objects.poll_most_s)
        self._waits += 1
        start = time.monotonic()
        self.hands.idle()
        while left_s > 0 and not self._signalled():
            time.sleep(min(SLICE_S, left_s))
            left_s -= SLICE_S
        self.blocked_s += time.monotonic() - start

    def _log_if_due(self) -> None:
        run = self.hands.run
        if run.sync.step % run.config.log_every == 0:
            progress = self._progress()
            self.journal.log(run.islands[0].lr(progress), progress, self.island.version)

    def _evaluate_if_due(self) -> None:
        every = self.config.eval.every
        if every is None or self.island.state.done:
            return
        at = self._progress() // every
        if at > self._evaluated:
            self._evaluated = at
            result = self.hands.evaluate(self._weights())
            self.journal.evaluated({"val_loss": result.loss, "val_bpb": result.bits_per_byte})
            self.hands.run.progress.evaluated(bits_per_byte=result.bits_per_byte)
