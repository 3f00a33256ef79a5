"""LocalSGD: the object that a user's own loop holds; trainer.py uses the same one.

It hooks the inner optimizer, counts steps, and after every H of them exchanges pseudo-gradients and takes the outer
step. What it guarantees is listed in the docs under "What a sync guarantees".
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.clients import Clients, expected, rests
from lowcomm.codec import Codec, Fp32
from lowcomm.island.part import Part, Whole
from lowcomm.outer import Nesterov, Outer
from lowcomm.privacy import Mechanism
from lowcomm.round.corrections import Corrections
from lowcomm.round.coverage import BufferRule
from lowcomm.round.deadline import LATE_TOLERANCE_S, Deadlines, OnLate
from lowcomm.round.departure import depart
from lowcomm.round.exchange import Exchanged, aggregate_into_mean, mean_may_overwrite
from lowcomm.round.finishing import end_together
from lowcomm.round.flight import Flight, Worker, may_overlap
from lowcomm.round.gradients import average_gradients, read_back, rebase
from lowcomm.round.guard import Guard, tell_all
from lowcomm.round.handshake import check_counts, check_parts, prepare
from lowcomm.round.landing import SyncReport, commit, pass_over
from lowcomm.round.loop import Loop
from lowcomm.round.lora_sync import install
from lowcomm.round.pacing import StepClock
from lowcomm.round.replica import Replica
from lowcomm.round.together import find_transport, together
from lowcomm.round.verify import check_still_covered, verify_all
from lowcomm.round.wording import speaks_of_arguments
from lowcomm.schedule import Action, EveryH, Pace, Schedule
from lowcomm.transport import Transport
from lowcomm.types import Round, SyncError, require


class LocalSGD(Loop):
    """Train `model` with `inner` for `every` steps, then merge with the other islands; repeat.

    Args:
        model: the island's model, or a list of models: several islands simulated in this process.
        inner: the optimizer(s) over the trainable parameters.
        island: what this rank holds of an island of several ranks (`lowcomm.island`); None: the whole replica.
        every: inner steps per round (H).
        outer: outer optimizer; codec, schedule, aggregator, privacy: the other arrows of the flow.
        transport: None takes the default process group if there is one, else the models given.
        buffers: rule by name pattern for persistent buffers: "average" or "local".
        outer_device: where global weights and outer state live (None: with the parameters); fp32 either way.
        seed: 64-bit seed from which each round's randomness derives; equal on every island.
        quorum: fraction of the islands that must be usable for a round to be committed.
        on_late: "wait" goes on when a late exchange arrives; "stop" ends in a SyncError at the next one, everywhere,
            after a wait of more than late_tolerance_s.
        clients: who is sampled, local steps, local objective, secure aggregation.

    Raises CoverageError or DivergenceError at construction, SyncError from the step that could not sync.
    """

    _averaged_step: int | None = None
    ranks: list[int]
    """Rank of each island's LoRA factors where ranks shrink inside a run, else empty."""

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
        transport: Transport | None = None,
        buffers: Mapping[str, BufferRule] | None = None,
        outer_device: torch.device | str | None = None,
        seed: int = 0,
        quorum: float = 0.5,
        privacy: Mechanism | None = None,
        on_late: OnLate = "wait",
        late_tolerance_s: float = LATE_TOLERANCE_S,
        clients: Clients | None = None,
    ) -> None:
        models = [model] if isinstance(model, nn.Module) else list(model)
        inners = [inner] if isinstance(inner, Optimizer) else list(inner)
        self.every, self.seed, self.quorum, self.privacy = every, seed, quorum, privacy
        self.outer, self.codec, self.clients = outer or Nesterov(), codec or Fp32(), clients or Clients()
        self.schedule, self.aggregator = schedule or EveryH(), aggregator or Mean()
        check_parts(self, models, island)
        self.transport = transport or find_transport(len(models), island)
        check_counts(len(models), len(inners), self.transport)
        self.replicas = [Replica(m, i, island or Whole()) for m, i in zip(models, inners, strict=True)]
        self.step, self.round, self.guard = 0, 0, Guard(privacy, self.transport, quorum, self.clients.sampling)
        self.pending: tuple[int, ...] = ()
        """Fragments whose exchange was due and has not been committed."""
        self.listeners: list[Callable[[SyncReport], None]] = []
        self.sync_s, self.blocked_s, self.gradients_s, self.gradient_steps = 0.0, 0.0, 0.0, 0
        self.must_rebase, self._last, self.step_clock = False, False, StepClock()
        self.pace, self.deadlines = Pace(every=every), Deadlines(on_late, late_tolerance_s)
        self.flights: dict[int, Flight] = {}
        """Exchanges that have started and not landed, by fragment, in the order of starting."""
        self._worker = Worker(beside=may_overlap(self.transport, self.codec, [r.held for r in self.replicas]))
        self.unverified: dict[int, tuple[bytes, Round]] = {}
        self.fragments, self.buffers = prepare(self, buffers or {}, outer_device)
        self.outers = [self.outer.build(f.outer_params) for f in self.fragments]
        self.codec_states = [[self.codec.init(f.views(f.weights)) for f in self.fragments] for _ in self.replicas]
        for index, replica in enumerate(self.replicas):
            replica.inner.register_step_pre_hook(lambda *_: self._before_step())
            replica.inner.register_step_post_hook(lambda *_, i=index: self._after_step(i))
        install(self)
        self.corrections = Corrections(self)
        self._begin(watch=transport is None and island is None)

    @property
    def next_action(self) -> Action:
        """What the schedule says about the inner step that comes next."""
        return self.action_at(self.step + 1)

    def action_at(self, step: int) -> Action:
        """What the schedule says about an inner step of the round that goes on."""
        return self.schedule(step - self.pace.since, self.pace.every)

    def count_tokens(self, tokens: int, island: int = 0) -> None:
        """Say how many tokens the next inner step of local island `island` trains on (weights of the mean).

        A loop that never calls it has one unit per step, so that all weights are equal.
        """
        require(tokens >= 0, "tokens", tokens, "0 or more", "count what the step trains on")
        self.replicas[island].next_tokens += tokens

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replace every gradient by its mean over the islands; call it before clipping. Once per step.

        The step hook does it for a loop that does not, in steps where the schedule asks for it (DDP).
        """
        average_gradients(self)
        self._averaged_step = self.step

    def finish(self) -> None:
        """Join islands that have more steps to do, and merge what is left; the models then hold the global weights."""
        end_together(self)
        rows = [torch.tensor([r.unsynced(i) for i in range(len(self.fragments))]) for r in self.replicas]
        pooled = [self.transport.inside(row).sum(dim=0) for row in rows]
        trained = self.transport.gather(pooled).amax(dim=0).tolist()  # an island may have had no work where others had
        due = tuple(i for i, tokens in enumerate(trained) if tokens > 0 or self.codec.holds_back)
        self._last = True
        try:
            if due:
                self.sync(due)
        finally:
            self._last = False  # after a failure training may go on

    def sync(self, fragments: Sequence[int]) -> None:
        """Exchange these fragments now. On SyncError nothing has changed and they stay in `pending`.

        One exception, which its message names: the fragment was committed but the islands could not compare it. It
        stays in `pending` as well, so that the next sync compares it.
        """
        start = time.perf_counter()
        self.land([i for i in fragments if i in self.flights])
        self._worker.wait()
        self.pending = tuple(fragments)
        check_still_covered(self.replicas)
        for index in self.pending:
            self._sync_fragment(index, start)
            self.pending = tuple(i for i in self.pending if i != index)
            start = time.perf_counter()

    def launch(self, fragments: Sequence[int]) -> None:
        """Start to exchange these fragments beside training; `land` applies what comes of it."""
        for index in fragments:
            start = time.perf_counter()
            check_still_covered(self.replicas)
            flight = depart(self, index)
            flight.delta_needed, flight.to_verify, self.unverified = True, self.unverified, {}
            self.flights[index] = flight
            if (share := self.schedule.own_share(self.transport.islands)) != 1:
                fragment = self.fragments[index]
                fragment.go_on_from([r.tensors(fragment) for r in self.replicas], flight.deltas, share)
                for replica in self.replicas:
                    replica.written(fragment)
            self._worker.start(flight, self._exchange)
            flight.launched, flight.blocked_s = start, time.perf_counter() - start

    def relaunch(self) -> None:
        """Start again what was on its way when a checkpoint was saved.

        Islands of this process that stopped apart start it together, when the last one is there.
        """
        if any(r.steps != self.step for r in self.replicas):
            self.flights.clear()
        for flight in self.flights.values():
            self._worker.start(flight, self._exchange)

    def wait(self) -> None:
        """Until no exchange runs beside training: before anybody else uses the transport."""
        self._worker.wait()

    def land(self, fragments: Sequence[int]) -> None:
        """Apply exchanges that were launched, waiting for them if need be.

        On SyncError nothing has changed and the fragment is in `pending`: the next step exchanges it anew.
        """
        for index in fragments:
            start = time.perf_counter()
            flight = self.flights.pop(index)
            self.pending = (*self.pending, index)
            commit(self, flight, start, delayed=True)
            self.pending = tuple(i for i in self.pending if i != index)

    def _sync_fragment(self, index: int, start: float) -> None:
        if expected(self) == frozenset():
            pass_over(self, index)
            return
        flight = depart(self, index)
        Worker(beside=False).start(flight, self._exchange)
        commit(self, flight, start)

    def _exchange(self, flight: Flight) -> Exchanged:
        """What may run beside training: it changes nothing but the fragment's scratch."""
        return together(self.transport, lambda: self._exchange_part(flight))

    def _exchange_part(self, flight: Flight) -> Exchanged:
        fragment, transport = self.fragments[flight.fragment], self.transport
        verify_all(transport, self.fragments, flight.to_verify)
        before, roll = list(transport.sent_bytes), self.deadlines.call_roll(self, flight)
        flight.told = tell_all(self, flight.told)
        states, codec = [s[flight.fragment] for s in self.codec_states], self.codec.at(flight.round)
        if not flight.delta_needed and mean_may_overwrite(codec, self.aggregator):
            fragment.overwrite_delta()
        done = aggregate_into_mean(
            fragment, flight.deltas, transport, codec, self.aggregator, states, roll, flight.round, self.quorum,
            self.clients.secure,
        )  # fmt: skip
        flight.sent_bytes = [now - then for now, then in zip(transport.sent_bytes, before, strict=True)]
        return done

    def _before_step(self) -> None:
        if self.next_action.average_gradients and self._averaged_step != self.step:
            if len(self.replicas) > 1:
                raise SyncError("with several islands in one process, call average_gradients() before the first step()")
            self.average_gradients()
        elif self.must_rebase and not self.next_action.average_gradients:
            rebase(self)

    def rests(self, island: int = 0) -> bool:
        """Whether a local island sits the next inner step out: not sampled, or done with its steps of the round."""
        return rests(self, island)

    def rest(self, island: int = 0) -> None:
        """Let a local island sit an inner step out, in place of its optimizer's step."""
        self.replicas[island].steps += 1
        self._advance()

    def _after_step(self, island: int) -> None:
        self.replicas[island].take_step()
        self._advance()

    def _advance(self) -> None:
        if any(r.steps == self.step for r in self.replicas):
            return
        self.step += 1
        self.step_clock.stepped()
        action = self.action_at(self.step)
        due = (*self.pending, *(() if self.schedule.overlaps else action.sync))
        self.land([i for i in action.land if i in self.flights])
        if due:
            self.sync(tuple(dict.fromkeys(due)))
        if self.schedule.overlaps:
            self.launch([i for i in action.sync if i not in due])
        self.step_clock.begin()

    def round_of(self, fragment: int, ahead: int = 0) -> Round:
        """The next round, or one `ahead` of it, for this fragment."""
        index = self.round + ahead
        seed = (self.seed * 0x9E3779B97F4A7C15 + (index + 1) * 0xBF58476D1CE4E5B9) % 2**64
        now = Round(index=index, step=self.step, fragments=(fragment,), seed=seed)
        return dataclasses.replace(now, level=self.pace.level, last=self._last)

    @property
    def rounds_done(self) -> int:
        """Rounds committed, a period of averaged gradients counting as one: what checkpoints are named by."""
        return self.round + self.gradient_steps // self.every

    def weights(self) -> dict[str, Tensor]:
        """The global weights by name: fp32 views on the outer device."""
        read_back(self)
        held = self.replicas[0].params
        return {name: view for f in self.fragments for name, view in f.views(f.weights).items() if name in held}
