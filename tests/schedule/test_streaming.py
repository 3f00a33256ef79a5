"""Fragments in turn, exchanges beside training: what lands, when, and what is never lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowcomm.codec import Codec, ErrorFeedback, Int4, PowerSGD, Zstd
from lowcomm.outer import SGD
from lowcomm.schedule import EveryH, Schedule, Streaming
from lowcomm.schedule.layers import by_size, strided
from lowcomm.sync import LocalSGD, SyncReport
from lowcomm.transport import Simulated, Transport
from lowcomm.types import ConfigError, DivergenceError, SyncError
from tests.support import toy


@pytest.mark.parametrize("alpha", [None, 0.0, 0.5])
def test_one_fragment_without_delay_is_plain(alpha: float | None) -> None:
    """The reduction of the docstring: bit for bit, bytes included (the handshake tells more of a longer schedule)."""
    seen = []
    for schedule in (EveryH(), Streaming(fragments=1, alpha=alpha)):
        sync = toy.build(3, schedule=schedule)
        sync.transport.sent_bytes, sync.transport.received_bytes = [0] * 3, [0] * 3
        seen.append(toy.trajectory(sync))
    assert seen[0] == seen[1]


def test_fragments_take_turns() -> None:
    schedule = Streaming(fragments=4, delay=3)
    starts = {step: schedule(step, 32).sync for step in range(1, 65) if schedule(step, 32).sync}
    assert starts == {8: (0,), 16: (1,), 24: (2,), 32: (3,), 40: (0,), 48: (1,), 56: (2,), 64: (3,)}
    lands = {step: schedule(step, 32).commit for step in range(1, 65) if schedule(step, 32).commit}
    assert lands == {step + 3: p for step, p in starts.items() if step + 3 <= 64}


@given(fragments=st.integers(1, 12), every=st.integers(1, 40), delay=st.integers(0, 40))
def test_each_fragment_syncs_once_per_period_and_one_is_on_its_way_at_a_time(
    fragments: int, every: int, delay: int
) -> None:
    schedule = Streaming(fragments=fragments, delay=delay)
    try:
        schedule.check(every, None)
    except ConfigError:
        assert fragments > every or delay >= every // fragments
        return
    flying: set[int] = set()
    for step in range(1, 3 * every + 1):
        action = schedule(step, every)
        flying -= set(action.commit)
        if delay:
            flying |= set(action.sync)
        assert len(flying) <= 1
    for period in range(3):
        steps = range(period * every + 1, (period + 1) * every + 1)
        assert sorted(p for step in steps for p in schedule(step, every).sync) == list(range(fragments))


NAMES = st.lists(st.integers(1, 1000), min_size=1, max_size=30)


@given(sizes=NAMES, fragments=st.integers(1, 30))
def test_cut_by_size_keeps_neighbours_together(sizes: list[int], fragments: int) -> None:
    named = {f"t{i}": size for i, size in enumerate(sizes)}
    if fragments > len(sizes):
        with pytest.raises(ConfigError, match=r"sync\.schedule\.fragments = \d+ must be 1 to \d+"):
            by_size(named, fragments)
        return
    parts = by_size(named, fragments)
    assert [name for part in parts for name in part] == list(named)
    assert len(parts) == fragments and all(parts)
    largest = max(sum(named[n] for n in part) for part in parts)
    assert largest <= sum(sizes) / fragments + max(sizes)


@given(layers=st.integers(1, 12), fragments=st.integers(1, 14))
def test_cut_by_layers_in_turn(layers: int, fragments: int) -> None:
    named = {"embed.weight": 50, **{f"layers.{i}.{w}": 10 for i in range(layers) for w in ("a.weight", "b")}, "norm": 3}
    if fragments > layers:
        with pytest.raises(ConfigError, match=f"= {fragments} must be 1 to {layers}, the model's layers"):
            strided(named, fragments)
        return
    parts = strided(named, fragments)
    assert sorted(n for part in parts for n in part) == sorted(named)
    for p, part in enumerate(parts):
        assert {int(n.split(".")[1]) % fragments for n in part if n.startswith("layers")} == {p}


@pytest.mark.parametrize(
    ("schedule", "every", "says"),
    [
        (Streaming(fragments=4, delay=8), 32, r"delay = 8 .*0 to 7, below sync\.every / fragments"),
        (Streaming(fragments=4, delay=-1), 32, r"delay = -1 "),
        (Streaming(fragments=5), 4, r"fragments = 5 .*1 to 4"),
        (Streaming(fragments=0), 4, r"fragments = 0 "),
        (Streaming(fragments=1, delay=1, alpha=0.0), 4, r"alpha = 0\.0 .*above 0 with a delay"),
        (Streaming(fragments=1, alpha=1.0), 4, r"alpha = 1\.0 .*0 < alpha < 1"),
        (Streaming(fragments=1, alpha=-0.1), 4, r"alpha = -0\.1 "),
        (Streaming(fragments=1, by="colour"), 4, r"by = 'colour' "),  # pyright: ignore[reportArgumentType]
    ],
)
def test_out_of_range(schedule: Schedule, every: int, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"sync\.schedule\.{says}.*Fix: "):
        schedule.check(every, 1000)


def local(sync: LocalSGD, island: int) -> Tensor:
    return toy.flat(sync.replicas[island].tensors(sync.state.fragments[0]))


def merged(sync: LocalSGD) -> Tensor:
    return toy.flat(list(sync.weights().values()))


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_what_a_delayed_fragment_becomes(alpha: float | None) -> None:
    """The equations of the docstring, with an outer step that takes the mean: two under way after four."""
    sync = toy.build(2, outer=SGD(lr=1.0), schedule=Streaming(fragments=1, delay=2, alpha=alpha))
    for step in range(4):
        toy.train_step(sync, step)
    started, before = [local(sync, i).clone() for i in range(2)], merged(sync).clone()
    assert list(sync.state.in_flight) == [0] and sync.round == 0
    toy.train_step(sync, 4)
    assert torch.equal(merged(sync), before)  # nothing is applied before it lands
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    trained: list[Tensor] = []
    land = sync.commit

    def spy(fragments: Sequence[int]) -> None:
        trained.extend(local(sync, i).clone() for i in range(2) if fragments)
        land(fragments)

    sync.commit = spy  # type: ignore[method-assign]
    toy.train_step(sync, 5)
    assert not sync.state.in_flight and sync.round == 1 and len(reports) == 1
    weights = reports[0].weights
    mean = sum(w * s for w, s in zip(weights, started, strict=True))
    torch.testing.assert_close(merged(sync), mean, atol=1e-6, rtol=1e-5)
    for i in range(2):
        now = merged(sync) + trained[i] - started[i] if alpha is None else alpha * trained[i] + 0.75 * merged(sync)
        torch.testing.assert_close(local(sync, i), now, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("schedule", [Streaming(fragments=2, delay=1, by="size"), Streaming(fragments=1, delay=3)])
def test_finish_lands_what_is_on_its_way_and_merges_the_rest(schedule: Streaming) -> None:
    for steps in range(1, 13):
        sync = toy.build(3, schedule=schedule)
        for step in range(steps):
            toy.train_step(sync, step)
        sync.finish()
        assert not sync.state.in_flight and not sync.state.consistency.later and not sync.pending
        for replica in sync.replicas:
            own = {n: p.detach() for n, p in replica.params.items()}
            assert all(torch.equal(own[n], w) for n, w in sync.weights().items())
        assert all(r.unsynced(i) == 0 for r in sync.replicas for i in range(schedule.fragments))


class Slow(Simulated):
    """Exchanges that wait until they are let through, or fail."""

    def __init__(self, islands: int) -> None:
        super().__init__(islands)
        self.open = threading.Event()
        self.open.set()
        self.fails = False

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        assert self.open.wait(30)
        if self.fails:
            raise SyncError("the gather failed")
        return super().gather(rows)


def test_training_goes_on_beside_an_exchange() -> None:
    """Steps return while it is held up; landing waits for it, and that time is counted as blocked."""
    transport = Slow(2)
    sync = toy.build(2, schedule=Streaming(fragments=1, delay=3), transport=transport)
    sync.state.worker.beside = True
    reports: list[SyncReport] = []
    sync.listeners.append(reports.append)
    transport.open.clear()
    for step in range(6):
        toy.train_step(sync, step)  # the exchange starts after the fourth
    assert sync.state.in_flight and not reports
    timer = threading.Timer(0.3, transport.open.set)
    timer.start()
    toy.train_step(sync, 6)
    timer.join()
    assert not sync.state.in_flight and reports[0].blocked_s > 0.2
    assert reports[0].seconds_s >= reports[0].blocked_s
    again = toy.build(2, schedule=Streaming(fragments=1, delay=3))
    for step in range(7):
        toy.train_step(again, step)
    assert torch.equal(merged(sync), merged(again))
    assert torch.equal(local(sync, 1), local(again, 1))


def test_a_codec_that_sets_threads_does_not_run_beside_training_on_several(monkeypatch: pytest.MonkeyPatch) -> None:
    class Link(Transport):
        """As the simulation in all but its class."""

        def __init__(self) -> None:
            self.inner = Simulated(2)
            self.islands, self.local = 2, (0, 1)
            self.sent_bytes, self.received_bytes = self.inner.sent_bytes, self.inner.received_bytes

        weighted_sum = property(lambda self: self.inner.weighted_sum)  # type: ignore[assignment]
        gather = property(lambda self: self.inner.gather)  # type: ignore[assignment]
        gather_sized = property(lambda self: self.inner.gather_sized)  # type: ignore[assignment]
        start_swap = property(lambda self: self.inner.start_swap)  # type: ignore[assignment]
        broadcast = property(lambda self: self.inner.broadcast)  # type: ignore[assignment]
        close = property(lambda self: self.inner.close)  # type: ignore[assignment]

    factors: list[Codec] = [PowerSGD(rank=1), ErrorFeedback(codec=PowerSGD(rank=1)), PowerSGD(rank=1) | Zstd()]
    for threads, codec, beside in (
        [(2, c, False) for c in factors] + [(1, c, True) for c in factors] + [(2, Int4(), True)]
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        sync = toy.build(2, schedule=Streaming(fragments=1, delay=1), codec=codec, transport=Link())
        assert sync.state.worker.beside is beside


def test_a_failed_exchange_changes_nothing_and_is_made_up() -> None:
    transport = Slow(2)
    sync = toy.build(2, schedule=Streaming(fragments=1, delay=1), transport=transport)
    for step in range(3):
        toy.train_step(sync, step)
    transport.fails = True
    toy.train_step(sync, 3)
    before = merged(sync).clone()
    with pytest.raises(SyncError, match="the gather failed"):
        toy.train_step(sync, 4)
    assert sync.pending == (0,) and not sync.state.in_flight and sync.round == 0
    assert torch.equal(merged(sync), before)
    assert sync.replicas[0].unsynced(0) == 5 * 4  # all five steps of four examples are still to be merged
    transport.fails = False
    toy.train_step(sync, 5)
    assert sync.round == 1 and not sync.pending


def test_a_fork_is_seen_by_the_next_exchange() -> None:
    """What lands is compared on the way of the exchange after it."""

    class Forked(Simulated):
        forked = False

        def gather(self, rows: Sequence[Tensor]) -> Tensor:
            table = super().gather(rows)
            if self.forked and rows[0].dtype == torch.uint8:
                table = table.clone()
                table[1, 0] ^= 1
            return table

    transport = Forked(2)
    sync = toy.build(2, schedule=Streaming(fragments=1, delay=1), transport=transport)
    for step in range(7):
        toy.train_step(sync, step)
    transport.forked = True
    toy.train_step(sync, 7)
    with pytest.raises(DivergenceError, match="after round 0"):
        toy.train_step(sync, 8)
