"""The exchange of islands in lockstep: all are in the same round, call a roll, and commit together or not at all."""

from __future__ import annotations

import time

from lowcomm.exchange.all_or_nothing import all_or_nothing
from lowcomm.exchange.base import Exchange, ExchangeParts, Way
from lowcomm.exchange.roll_call import call_roll
from lowcomm.exchange.sanity import check_mean
from lowcomm.exchange.worker import carry_out
from lowcomm.state.outgoing import Arrived, Outgoing, Pending


class Lockstep(Exchange):
    """Compares what was committed before, calls the roll, then goes its way."""

    def __init__(self, way: Way, last: Way, parts: ExchangeParts) -> None:
        self.way, self.parts = way, parts
        self.last = last
        """The way of a run's last merge."""

    def start(self, out: Outgoing) -> Pending:
        pending = Pending()
        if out.overlapped:
            self.parts.worker.start(pending, lambda at: self._exchange(out, at))
        else:
            carry_out(pending, lambda at: self._exchange(out, at))
        return pending

    def _exchange(self, out: Outgoing, pending: Pending) -> Arrived:
        """What may run beside training: it changes nothing but the fragment's lent vectors."""
        if self.parts.transport.ranks == 1:
            with self.parts.transport.transaction():
                return self._exchange_part(out, pending)
        return all_or_nothing(self.parts.transport, lambda: self._exchange_part(out, pending))

    def _exchange_part(self, out: Outgoing, pending: Pending) -> Arrived:
        parts, transport, way = self.parts, self.parts.transport, self.last if out.round.last else self.way
        if out.to_compare:
            parts.consistency.compare_all(parts.anchors, out.to_compare)
        before, start = list(transport.sent_bytes), time.perf_counter()
        norms = [way.heard_norm(norm) for norm in out.norms]
        cohort = call_roll(
            transport, parts.aggregator, out.round, out.unsynced, norms, parts.quorum,
            parts.deadlines.arrival_s(pending), parts.deadlines.vote, out.expected, out.sections, out.norms_before,
            out.without,
        )  # fmt: skip
        pending.called = time.perf_counter()
        pending.latency_s = pending.called - start
        parts.deadlines.called(pending, cohort)
        if way.overwrites and not out.delta_needed:
            out.fragment.overwrite_delta()
        arrived = way.carry(out, cohort)
        check_mean(arrived, out.round, None if out.noised else way.mean_limit(arrived.cohort))
        pending.sent_bytes = [now - then for now, then in zip(transport.sent_bytes, before, strict=True)]
        return arrived
