"""The state of a sync: what a checkpoint must hold, and the parts that a round runs through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowcomm.codec import State
from lowcomm.exchange.base import Exchange
from lowcomm.exchange.worker import Worker
from lowcomm.hooks.base import Hook
from lowcomm.hooks.buffers import BufferAverage
from lowcomm.hooks.privacy import Privacy
from lowcomm.hooks.rank_pruning import RankPruning
from lowcomm.schedule import Action, Pace
from lowcomm.state.anchor import Anchor
from lowcomm.state.consistency import Consistency
from lowcomm.state.deadlines import Deadlines
from lowcomm.state.fragment import Fragment
from lowcomm.state.norms import NormHistory
from lowcomm.state.outgoing import Arrived, InFlight, Outgoing, Pending
from lowcomm.state.replica import Replica
from lowcomm.state.report import Consensus, SyncReport
from lowcomm.state.spec import SyncSpec
from lowcomm.state.step_clock import StepClock
from lowcomm.transport import Transport
from lowcomm.types import Delta, Round, SyncError


class SyncState:
    """What `LocalSGD` holds; lists of lists are by local island, then by fragment, unless said otherwise."""

    run_id: int
    """64-bit random number on which the islands agreed, kept over a resume: payloads of other runs are refused."""
    attempt: int
    """The number on which they agreed when these processes began: states saved by two attempts are never mixed."""
    exchange: Exchange
    worker: Worker
    anchors: list[list[Anchor]]
    """By fragment: the one anchor that all islands share, or one of each local island."""
    privacy: Privacy | None = None
    """The privacy hook, where there is one."""
    buffer_average: BufferAverage | None = None
    """The hook that averages buffers, where there is one."""
    rank_pruning: RankPruning | None = None
    """The hook that keeps LoRA ranks, where they shrink."""
    consensus: Consensus | None = None
    """The mean of the islands' own anchors, where it was asked for since the last commit."""

    def __init__(self, spec: SyncSpec, transport: Transport, replicas: list[Replica]) -> None:
        self.spec, self.transport, self.replicas = spec, transport, replicas
        self.fragments: list[Fragment] = []
        self.hooks: list[Hook] = []
        """Those in use only, in the order of a round."""
        self.codec_states: list[list[State]] = []
        self.shared_codec_states: dict[int, State] = {}
        """By fragment: the state before the first round, where local islands share it. No codec writes into one."""
        self.rule_states: list[dict[str, Tensor]] = []
        """What the aggregator carries to the next round, by fragment."""
        self.norms: list[NormHistory] = []
        """What rounds have committed, by fragment."""
        self.step, self.round = 0, 0
        self._ahead = 0, 0
        """(step, n): the first n local islands are known to have done more inner steps than that."""
        self.due: tuple[int, ...] = ()
        """Fragments whose exchange was due and has not been committed."""
        self.in_flight: dict[int, InFlight] = {}
        """Exchanges that have started and were not committed, by fragment, in the order of starting."""
        self.altered: dict[int, dict[int, str]] = {}
        """Islands that the next exchange of a fragment leaves out, as what they sent in this one was altered."""
        self.last = False
        """Whether the round is the run's last merge."""
        self.must_rebase = False
        """Whether gradients were averaged, so that the anchor is behind the islands' equal weights."""
        self.gradient_steps = 0
        self.sync_s, self.blocked_s, self.gradients_s = 0.0, 0.0, 0.0
        self.pace = Pace(every=spec.every)
        self.step_clock = StepClock()
        self.deadlines = Deadlines(spec.on_late, spec.late_tolerance_s)
        self.consistency = Consistency(transport)
        self.losses: Callable[[int, Sequence[Delta]], list[float]] | None = None
        """Losses on the proxy set of a fragment's anchor minus Deltas; None: there is no such text."""
        self.listeners: list[Callable[[SyncReport], None]] = []

    def someone_is_behind(self) -> bool:
        """Whether a local island has not done more inner steps than `step`; looks at each once a step, in all."""
        replicas, (step, at) = self.replicas, self._ahead
        at = at if step == self.step else 0
        while at < len(replicas) and replicas[at].steps != self.step:
            at += 1
        self._ahead = self.step, at
        return at < len(replicas)

    def look_again(self) -> None:
        """Steps of islands were set, as by a checkpoint."""
        self._ahead = 0, 0

    def action_at(self, step: int) -> Action:
        """What the schedule says about an inner step of the round that goes on."""
        return self.spec.schedule(step - self.pace.since, self.pace.every)

    def round_of(self, index: int) -> Round:
        """The next round, for fragment `index`."""
        return Round(
            index=self.round,
            step=self.step,
            fragments=(index,),
            seed=self.spec.round_seed(self.round),
            run=self.run_id,
            last=self.last,
            level=self.pace.level,
        )

    def anchor_of(self, index: int, local: int) -> Anchor:
        """The anchor of a fragment that a local island has."""
        anchors = self.anchors[index]
        return anchors[local if len(anchors) > 1 else 0]

    def rests(self, local: int) -> bool:
        """Whether a local island sits the next inner step out."""
        number = self.transport.local[local]
        slow = self.exchange.rests(number, self.step)
        return slow or self.spec.rests(number, self.transport.islands, self.step, self.round)

    def tensors(self, index: int, local: Sequence[int]) -> list[list[Tensor]]:
        """A fragment's tensors in the replicas of these local islands."""
        fragment = self.fragments[index]
        return [self.replicas[i].tensors(fragment) for i in local]

    def moved(self, out: Outgoing, arrived: Arrived, local: int) -> bool:
        """Whether a local island's contribution counts and it has trained on since it left."""
        weight = arrived.cohort.weights[self.transport.local[local]]
        replica = self.replicas[local]
        return weight != 0 and replica.tokens != out.tokens[local] and not replica.unusable

    def write_back(self, index: int, local: Sequence[int]) -> bytes:
        """Give local islands that share an anchor its weights; returns their digest."""
        fragment = self.fragments[index]
        places = {id(place): place for place in (self.replicas[i].adopt(fragment) for i in local)}
        return self.anchor_of(index, local[0]).write(list(places.values()))

    def written(self, index: int, local: Sequence[int]) -> None:
        """Tell the other ranks of these local islands that a fragment's tensors were overwritten."""
        for i in local:
            self.replicas[i].written(self.fragments[index])

    def receive(self, out: Outgoing, pending: Pending, delayed: bool) -> Arrived | None:
        """Wait for an exchange, and tell whether it is late. Raises what it raised."""
        due = delayed and out.round.step < self.step and out.index in self.action_at(self.step).commit
        return self.deadlines.receive(out, pending, self.transport.local[0], due)

    def take_back(self, out: Outgoing) -> None:
        """Give islands what they went on without, or what was trained before the launch would be lost."""
        share = self.spec.schedule.own_share(self.transport.islands)
        if share != 1:
            for anchor in out.anchors:
                deltas = [out.deltas[i] for i in anchor.local]
                anchor.take_back(self.tensors(out.index, anchor.local), deltas, share)
                self.written(out.index, anchor.local)

    def accept(self, out: Outgoing, arrived: Arrived, pending: Pending, delayed: bool) -> None:
        """Count the committed round; take over codec and rule states; let islands keep what was not sent of theirs."""
        index, fragment, alpha = out.index, out.fragment, self.spec.schedule.alpha
        unusable = pending.cohort.dropped if pending.cohort is not None else ()
        self.round += 1
        self.consensus = None
        self.norms[index].add(arrived.cohort.norms, arrived.cohort.weights)
        if arrived.aggregate is not None:
            self.rule_states[index] = arrived.aggregate.state
        for i in range(len(self.replicas)) if arrived.adopters is None else arrived.adopters:
            replica = self.replicas[i]
            replica.synced_tokens[index] = out.tokens[i]
            if self.transport.local[i] in unusable:
                replica.unusable.discard(index)
                replica.inner.state.clear()  # moments of a diverged island are as bad as its weights
            residual, self.codec_states[i][index] = self.spec.codec.take_residual(arrived.states[i])
            if residual is not None:
                # in a merge the residual is a part of the local weights already
                share = alpha if delayed and alpha is not None and self.moved(out, arrived, i) else 0.0
                self.anchor_of(index, i).keep_apart(replica.tensors(fragment), residual, 1 - share)
            replica.written(fragment)

    @property
    def ranks(self) -> list[int]:
        """Rank of each island's LoRA factors where ranks shrink inside a run, else empty."""
        return self.rank_pruning.ranks if self.rank_pruning is not None else []

    @torch.no_grad()
    def read_back(self) -> None:
        """Bring the anchors up to date in a phase of averaged gradients, in which islands are equal: no exchange.

        For evaluation, checkpoints and reports in its middle; the islands compare them when the phase is over.
        """
        if self.must_rebase:
            for (anchor,) in self.anchors:
                anchor.read(self.replicas[0].tensors(anchor.fragment))

    def weights(self) -> dict[str, Tensor]:
        """The global weights by name: fp32 views on the outer device.

        Of islands with anchors of their own it is the mean, if they have just computed it together (`finish`, or an
        evaluation); raises SyncError if not.
        """
        self.read_back()
        held = self.replicas[0].params
        fragments = [anchors[0].named for anchors in self.anchors]
        if self.exchange.stands_for_all == "mean":
            if self.consensus is None:
                raise SyncError(
                    "each island has weights of its own, and their mean was not computed since the last round. "
                    "Fix: call finish() on every island first"
                )
            fragments = self.consensus.named
        return {name: view for named in fragments for name, view in named.items() if name in held}
