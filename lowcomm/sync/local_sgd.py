"""LocalSGD: the object that a user's own loop holds; trainer.py uses the same one.

It hooks the inner optimizer, counts steps, and after every H of them runs a round (`round.py`); guarantees: the docs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import nn
from torch.optim import Optimizer

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.codec import Codec, Fp32
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.hooks.lora import loosen
from lowcomm.island.part import Part, Whole
from lowcomm.outer import Nesterov, Outer
from lowcomm.privacy import Mechanism
from lowcomm.schedule import Action, EveryH, Schedule
from lowcomm.state.client import clients_of
from lowcomm.state.coverage import check_still_covered
from lowcomm.state.deadlines import LATE_TOLERANCE_S, OnLate
from lowcomm.state.norms import NORM_BOUND
from lowcomm.state.replica import Replica
from lowcomm.state.report import SyncReport
from lowcomm.state.spec import BufferRule, Clients, SyncSpec
from lowcomm.sync.assembly import assemble
from lowcomm.sync.candidates import losses_at
from lowcomm.sync.compatibility import check_spec
from lowcomm.sync.consensus import take_mean
from lowcomm.sync.data_parallel import average_gradients, rebase
from lowcomm.sync.finishing import finish_all
from lowcomm.sync.handshake import check_counts, find_transport
from lowcomm.sync.loop import Loop
from lowcomm.sync.overlap import commit_in_flight, launch
from lowcomm.sync.reporting import note_retry
from lowcomm.sync.round import begin, commit, depart, nobody_sampled, skip, unmerged
from lowcomm.sync.set_aside import set_aside
from lowcomm.sync.wording import speaks_of_arguments
from lowcomm.sync.wrapped import check_passes, check_unwrapped
from lowcomm.transport import Transport
from lowcomm.typecheck import listed
from lowcomm.types import RetryError, SyncError, require


class LocalSGD(Loop):
    """Train `model` with `inner` for `every` steps, then merge with the other islands; repeat.

    Args:
        model: the island's model, or a list of models: several islands simulated in this process.
        inner: the optimizer(s) over the trainable parameters.
        island: what this rank holds of an island of several ranks (`lowcomm.island`); None: the whole replica.
        every: inner steps per round (H).
        outer: outer optimizer; codec, schedule, aggregator, privacy: the other arrows of the flow.
        exchange: None: islands in lockstep; else who exchanges with whom, and when (`lowcomm.exchange`).
        transport: None takes the default process group if there is one, else the models given.
        buffers: rule by name pattern for persistent buffers: "average" or "local".
        outer_device: where global weights and outer state live (None: with the parameters); fp32 either way.
        seed: 64-bit seed from which each round's randomness derives; equal on every island.
        quorum: fraction of the islands that must be usable for a round to be committed.
        norm_bound: an island whose Delta is so many times larger than is usual (`lowcomm.state.norms`) is left out of
            the round and starts the next from the global weights; None: only norms that are not finite.
        on_late: "wait" goes on when a late exchange arrives; "stop" ends in a SyncError at the next one, everywhere,
            after a wait of more than late_tolerance_s.
        clients: who is sampled, local steps, local objective, secure aggregation.

    Raises ConfigError, CoverageError or DivergenceError at construction, SyncError from the step that could not sync.
    """

    _averaged_step: int | None = None

    @speaks_of_arguments()
    def __init__(
        self,
        model: nn.Module | Sequence[nn.Module],
        inner: Optimizer | Sequence[Optimizer],
        *,
        every: int,
        island: Part | None = None,
        outer: Outer | None = None,
        codec: Codec | None = None,
        schedule: Schedule | None = None,
        aggregator: Aggregator | None = None,
        exchange: ExchangeChoice | None = None,
        transport: Transport | None = None,
        buffers: Mapping[str, BufferRule] | None = None,
        outer_device: torch.device | str | None = None,
        seed: int = 0,
        quorum: float = 0.5,
        norm_bound: float | None = NORM_BOUND,
        privacy: Mechanism | None = None,
        on_late: OnLate = "wait",
        late_tolerance_s: float = LATE_TOLERANCE_S,
        clients: Clients | None = None,
    ) -> None:
        spec = SyncSpec(
            every=every, outer=outer or Nesterov(), codec=codec or Fp32(), schedule=schedule or EveryH(),
            aggregator=aggregator or Mean(), privacy=privacy, clients=clients or Clients(), exchange=exchange,
            buffers=dict(buffers or {}), outer_device=outer_device, seed=seed, quorum=quorum, norm_bound=norm_bound,
            on_late=on_late, late_tolerance_s=late_tolerance_s,
        )  # fmt: skip
        check_passes(spec)
        models, inners = listed(model, nn.Module, "model"), listed(inner, Optimizer, "inner")
        self._assemble(spec, models, inners, island, transport)

    @classmethod
    def of(
        cls,
        spec: SyncSpec,
        models: Sequence[nn.Module],
        inners: Sequence[Optimizer],
        *,
        island: Part | None = None,
        transport: Transport | None = None,
        turns: bool = False,
    ) -> Self:
        """The LocalSGD of a spec; raises what its constructor raises. turns: islands take turns on the one model."""
        sync = cls.__new__(cls)
        sync._assemble(spec, models, inners, island, transport, turns)
        return sync

    def _assemble(
        self,
        spec: SyncSpec,
        models: Sequence[nn.Module],
        inners: Sequence[Optimizer],
        island: Part | None,
        transport: Transport | None,
        turns: bool = False,
    ) -> None:
        check_spec(spec)
        check_unwrapped(models, island)
        watch = transport is None and island is None
        loosen(models, spec.aggregator)
        transport = transport or find_transport(len(models), island)
        check_counts(len(inners) if turns else len(models), len(inners), transport)
        if turns:
            replicas = clients_of(models[0], inners, Whole())
        else:
            replicas = [Replica(m, i, island or Whole()) for m, i in zip(models, inners, strict=True)]
        self.state = assemble(spec, transport, replicas, self._before_step, self._after_step)
        self._begin(watch=watch)

    @property
    def next_action(self) -> Action:
        """What the schedule says about the inner step that comes next."""
        return self.state.action_at(self.state.step + 1)

    def count_tokens(self, tokens: int, island: int = 0) -> None:
        """Say how many tokens the next inner step of local island `island` trains on (weights of the mean).

        A loop that never calls it has one unit per step, so that all weights are equal.
        """
        require(tokens >= 0, "tokens", tokens, "0 or more", "count what the step trains on")
        self.state.replicas[island].next_tokens += tokens

    def count_loss(self, loss: float, island: int = 0) -> None:
        """Say the loss (nats per token) of the next inner step of local island `island`: rules that weigh by it ask."""
        require(math.isfinite(loss), "loss", loss, "a finite number", "leave steps out whose loss is not, set_aside")
        self.state.replicas[island].count_loss(loss)

    def judge_by(self, loss: Callable[[nn.Module], float]) -> None:
        """Give rules that judge contributions (Shapley, Trust) the loss of a model on a text that all islands have.

        It must have the same bits on every island; call it before the first step.
        """
        self.state.losses = losses_at(self.state, loss)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replace every gradient by its mean over the islands; call it before clipping. Once per step.

        The step hook does it for a loop that does not, in steps where the schedule asks for it (DDP).
        """
        average_gradients(self.state)
        self._averaged_step = self.state.step

    def finish(self) -> None:
        """Join islands that have more steps to do, and merge what is left; the models then hold the global weights."""
        state = self.state
        finish_all(state, lambda: self.commit(tuple(state.in_flight)), self.rest)
        due = unmerged(state)
        state.last = True
        try:
            if due:
                self.sync(due)
        finally:
            state.last = False  # after a failure training may go on
        take_mean(state)

    def sync(self, fragments: Sequence[int]) -> None:
        """Exchange these fragments now. On SyncError nothing has changed and they stay in `pending`.

        One exception, which its message names: the fragment was committed but the islands could not compare it. It
        stays in `pending` as well, so that the next sync compares it.
        """
        start, state = time.perf_counter(), self.state
        self.commit([i for i in fragments if i in state.in_flight])
        state.worker.wait()
        state.due = tuple(fragments)
        check_still_covered(state.replicas)
        for index in state.due:
            self._report(self._sync_fragment(index, start))
            state.due = tuple(i for i in state.due if i != index)
            start = time.perf_counter()

    def launch(self, fragments: Sequence[int]) -> None:
        """Start to exchange these fragments beside training; `commit` applies what comes of it."""
        for index in fragments:
            check_still_covered(self.state.replicas)
            launch(self.state, index)

    def commit(self, fragments: Sequence[int]) -> None:
        """Apply exchanges that were launched, waiting for them if need be.

        On SyncError nothing has changed and the fragment is in `pending`: the next step exchanges it anew.
        """
        for index in fragments:
            try:
                self._report(commit_in_flight(self.state, index))
            except RetryError as error:
                note_retry(self.state, index, error)
                self.sync(self.state.due)

    def wait(self) -> None:
        """Wait until no exchange runs beside training: before anybody else uses the transport."""
        self.state.worker.wait()

    def _sync_fragment(self, index: int, start: float) -> SyncReport | None:
        state = self.state
        if nobody_sampled(state):
            return skip(state, index)
        while True:
            try:
                out = depart(state, index)
                return commit(state, out, begin(state, out), start)
            except RetryError as error:  # on every island that is left alike
                note_retry(state, index, error)
            finally:
                state.fragments[index].release()

    def _report(self, report: SyncReport | None) -> None:
        if report is not None:
            for listener in self.state.listeners:
                listener(report)

    def _before_step(self) -> None:
        state, averages = self.state, self.next_action.average_gradients
        if averages and self._averaged_step != state.step:
            if len(state.replicas) > 1:
                raise SyncError("with several islands in one process, call average_gradients() before the first step()")
            self.average_gradients()
        elif state.must_rebase and not averages:
            rebase(state)

    def rests(self, island: int = 0) -> bool:
        """Whether a local island rests in the next step: not sampled, done with the round's, slower, or set aside."""
        return bool(self.state.replicas[island].unusable) or self.state.rests(island)

    def set_aside(self, island: int = 0) -> None:
        """Call it where a step's loss or gradients are not finite, then `rest` until `rests` is false again.

        The island takes the global weights with fresh moments; the others leave it out of the exchange and name it.
        """
        set_aside(self.state, island)

    def take_turn(self, island: int, *, train: bool = False) -> None:
        """Let the model hold the weights of this local island, where islands take turns; train: they may change."""
        self.state.replicas[island].take_turn(train=train)

    def rest(self, *islands: int) -> None:
        """Let local islands, the first if none is named, sit an inner step out, in place of their optimizers' steps."""
        for island in islands or (0,):
            self.state.replicas[island].steps += 1
        self._advance()

    def _after_step(self, island: int) -> None:
        self.state.replicas[island].take_step()
        self._advance()

    def _advance(self) -> None:
        state = self.state
        if state.someone_is_behind():
            return
        state.step += 1
        state.step_clock.stepped()
        action = state.action_at(state.step)
        overlaps = state.spec.schedule.overlaps
        due = (*state.due, *(() if overlaps else state.exchange.due(state.step, action.sync)))
        self.commit([i for i in action.commit if i in state.in_flight])
        if due:
            self.sync(tuple(dict.fromkeys(due)))
        if overlaps:
            self.launch([i for i in action.sync if i not in due])
        state.step_clock.begin()
