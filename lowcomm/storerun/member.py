"""The loop of a member: heal, join, train what is leased, contribute, follow, until the chain says that all is done."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from lowcomm.config import RunConfig
from lowcomm.run.privacy_spent import Counts
from lowcomm.store.island import Phase, StoreIsland
from lowcomm.storerun.blocks import BlockSizes
from lowcomm.storerun.chain import Chain
from lowcomm.storerun.hands import Hands
from lowcomm.storerun.member_journal import MemberJournal
from lowcomm.storerun.plan import choice_of, tokens_per_step
from lowcomm.storerun.said import LOG, said_of
from lowcomm.types import SyncError

LOOKS_PER_ROUND = 4
MOST_DIVERGED = 3
"""Rounds in a row that may end in values that are not finite."""
MOST_ROUNDS = 3
"""That a contribution may hold where the store is slower than training."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A round to train: numbers of blocks, None for one of the island's own text."""

    blocks: tuple[int | None, ...]
    spare: tuple[int | None, ...]
    """What may be trained on beside it while the store is busy."""
    steps: int
    """Of each block."""


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
        self.chain = Chain(island, hands, journal)
        self.waits_for_all = choice_of(config).waits_for_all
        self.spent = False
        """Whether the privacy budget allows no further round."""
        self._round_s = 0.0
        self._unsent: dict[int, tuple[int, int]] = {}
        """Tokens and inner steps since the last contribution to the fragments but the first."""
        self._diverged = 0
        self._evaluated = 0

    def live(self) -> bool:
        """Train to the run's end: True; False: a signal came, and what was contributed stays."""
        island, chain = self.island, self.chain
        while not (island.phase is not Phase.HEAL and island.done):
            if chain.signalled:
                return False
            if island.phase is Phase.HEAL:
                self._unsent.clear()
                chain.become()
            elif (work := self._work()) is not None:
                self._train(work)
            elif self.spent:
                return True
            elif not chain.look():
                chain.wait()
            else:
                self._evaluate_if_due()
        while not chain.finished():
            if chain.signalled:
                return False
            chain.wait()
        chain.known = island.state
        self.hands.take(chain.weights())
        return True

    def _work(self) -> Work | None:
        """What can be trained now."""
        island, fragments = self.island, self.chain.fragments
        self.chain.collect()
        if island.phase is not Phase.MEMBER or not all(island.may_contribute(f) for f in fragments):
            return None
        if island.closing and not island.lease:
            self._send_rest()
            return None
        if self._budget_is_spent():
            return None
        if self.sizes is None:
            more = () if self.waits_for_all else (None,) * (MOST_ROUNDS - 1)
            return None if island.closing else Work(blocks=(None,), spare=more, steps=self.config.sync.every)
        lease, count = island.lease, self.sizes.per_round
        if not lease:
            return None
        spare = () if self.waits_for_all else lease[count : count * MOST_ROUNDS]
        return Work(blocks=lease[:count], spare=spare, steps=self.sizes.steps)

    def _train(self, work: Work) -> None:
        """A round, and its contribution. Ends early where the island must heal, is stopped or diverges."""
        start, tokens, trained = time.monotonic(), 0, list[int | None]()
        left, spare = list(work.blocks), list(work.spare)
        self.chain.round_steps = 0
        while left:
            block = left.pop(0)
            trained.append(block)
            for number in range(work.steps):
                counted = self._step(block, number)
                if counted is None:
                    return
                tokens += counted
            if not left and spare and self.chain.busy:  # what is sent or fetched needs longer than a round
                left.append(spare.pop(0))
        self._round_s = time.monotonic() - start
        self.chain.collect()
        if self.island.phase is not Phase.MEMBER:
            return
        blocks = tuple(b for b in trained if b is not None)
        self._contribute((0,), tokens=tokens, blocks=blocks)
        self.chain.looked_s = -math.inf

    def _step(self, block: int | None, number: int) -> int | None:
        """An inner step and what follows it; its tokens, None: the round is over."""
        chain = self.chain
        if chain.signalled:
            return None
        stepped = self.hands.step(block, number, self._progress())
        if not math.isfinite(stepped.loss):
            chain.collect()
            self._diverge(f"the loss of inner step {number} is {stepped.loss}")
            return None
        self.journal.step(stepped.loss)
        chain.round_steps += 1
        for f in chain.fragments[1:]:
            held, steps = self._unsent.get(f, (0, 0))
            self._unsent[f] = held + stepped.tokens, steps + 1
        self._log_if_due()
        self._send_fragments()
        if chain.busy:
            return stepped.tokens
        came = chain.collect()
        if self.island.phase is not Phase.MEMBER:
            return None
        if came:
            self._evaluate_if_due()
        if time.monotonic() - chain.looked_s > max(self._round_s / LOOKS_PER_ROUND, self.island.objects.poll_first_s):
            chain.begin()
        return stepped.tokens

    def _send_fragments(self) -> None:
        """Contribute to the fragments but the first whose turn comes inside the round; the first's is its end."""
        fragments, every, chain = self.chain.fragments, self.config.sync.every, self.chain
        due = [f for f in fragments[1:] if f * every // len(fragments) == chain.round_steps % every]
        if due and (self.waits_for_all or not chain.busy):
            chain.collect()
            for f in due:
                if self.island.may_contribute(f):
                    self._contribute((f,), tokens=0, blocks=())

    def _send_rest(self) -> None:
        """The run closes: send what is held, for the last time."""
        for f in self.chain.fragments:
            if self.island.must_finish(f) and self.island.may_contribute(f):
                self._contribute((f,), tokens=0, blocks=())

    def _contribute(self, fragments: tuple[int, ...], *, tokens: int, blocks: tuple[int, ...]) -> None:
        """Contribute to the first fragment, or to another one: the tokens of that are counted by itself."""
        island, chain, round_s = self.island, self.chain, self._round_s or None
        deltas = {f: self.hands.delta(f) for f in fragments}
        said = {} if 0 not in fragments else {LOG: said_of(self.journal.mean_loss(), round_s)}
        steps = chain.round_steps if 0 in fragments else 0
        tokens, held = (tokens, steps) if 0 in fragments else self._unsent.pop(fragments[0], (0, 0))
        island.contribute(deltas, tokens=tokens, steps=held, blocks=blocks, expected_s=round_s, sections=said)
        if island.phase is Phase.HEAL:
            self._count_divergence(island.why)
            return
        self._diverged = 0
        chain.sent_steps, chain.round_steps = chain.sent_steps + steps, chain.round_steps - steps
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

    def _budget_is_spent(self) -> bool:
        """Whether another round would cost more epsilon than this island may spend."""
        run = self.hands.run
        if run.ledger is None or run.ledger.mechanism.budget is None:
            return False
        if run.ledger.exceeds(Counts.of(run.sync.state, releases=1, steps=self.config.sync.every)):
            self.spent = True
            budget = run.ledger.mechanism.budget
            self.journal.note(f"the privacy budget, epsilon {budget:g}, is spent: this island trains no more")
        return self.spent

    def _progress(self) -> int:
        """The inner step of a run of fixed islands that the next one stands for: learning rates follow it."""
        state, chain = self.chain.known, self.chain
        assert state is not None
        done = state.tokens_done / (self.islands * tokens_per_step(self.config))
        since = chain.round_steps + chain.sent_steps
        return int(done + since * max(1, len(state.members)) / self.islands)

    def _log_if_due(self) -> None:
        run, known = self.hands.run, self.chain.known
        if run.sync.step % run.config.log_every == 0 and known is not None:
            progress = self._progress()
            self.journal.log(run.islands[0].lr(progress), progress, known.version)

    def _evaluate_if_due(self) -> None:
        every, known = self.config.eval.every, self.chain.known
        if every is None or known is None or known.done:
            return
        at = self._progress() // every
        if at > self._evaluated:
            self._evaluated = at
            result = self.hands.evaluate(self.chain.weights())
            self.journal.evaluated({"val_loss": result.loss, "val_bpb": result.bits_per_byte})
            self.hands.run.progress.evaluated(bits_per_byte=result.bits_per_byte)
