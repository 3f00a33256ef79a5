"""The relayed transport without an island that is lost: in each exchange as between processes, and in masked rounds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from lowcomm.exchange.agreement import gathers
from lowcomm.secure import SecureSum
from lowcomm.sync import SyncReport
from lowcomm.transport import Collective, Transport
from lowcomm.transport.relay import Answer, IslandError, Relay, Request
from lowcomm.transport.relayed import Relayed
from lowcomm.types import SyncError, TransportError
from tests.support import runs
from tests.transport.test_relayed import Between, each_on_a_thread, row

ISLANDS, VICTIM = 4, 2
GONE = "its process is gone"
Result = TypeVar("Result")


class Died(BaseException):
    """What ends the victim's thread."""


class Doomed(Relayed):
    """Dies in its exchange number `last` of those among the present, with its request posted or not."""

    last, posts, done = 0, False, 0

    def _among(self, kind: str, rows: Sequence[Tensor], present: bool = False) -> Callable[[], dict[int, Tensor]]:
        self.done += present
        if present and self.done == self.last:
            if self.posts:
                super()._among(kind, rows, present)
            raise Died
        return super()._among(kind, rows, present)


def survivors(
    job: Callable[[Relayed], Result], victim: Callable[[Doomed], object], islands: int = ISLANDS
) -> dict[int, Result]:
    """What `job` gives on the islands that are left when the victim, whose thread is to die, is lost."""
    between, results = Between(islands), dict[int, Result]()

    def work(k: int) -> None:
        if k != VICTIM:
            results[k] = job(Relayed(islands, k, between.post(k)))
            return
        try:
            victim(Doomed(islands, k, between.post(k)))
        except Died:
            with between.changed:
                for answers in between.relay.lose(k, GONE):
                    between.answers |= {(j, answer.number): answer for j, answer in answers.items()}
                between.changed.notify_all()

    each_on_a_thread(between, work)
    return results


def exchanges(transport: Transport) -> dict[str, object]:
    """What an island gets of every kind of exchange; the first one finds the victim gone."""
    me, everyone = transport.local[0], range(transport.islands)
    transport.goes_on = True
    mine = [torch.arange(5, dtype=torch.float64) + me]
    sends = [[torch.full((3 * me + k,), 10 * me + k, dtype=torch.uint8) for k in everyone]]
    sizes = [[3 * k + me if k != VICTIM else 0 for k in everyone]]
    seen: dict[str, object] = {
        "gather_present": [None if r is None else r.tolist() for r in transport.gather_present(mine)],
        "lost": sorted(transport.lost),
        "swap_present": [None if r is None else r.tolist() for r in transport.swap_present(sends, sizes)[0]],
        "gather": transport.gather(mine).tolist(),
        "gather_sized": [r.tolist() for r in transport.gather_sized([torch.full((me,), me, dtype=torch.uint8)])],
        "swap_rows": [r.tolist() for r in transport.swap_rows(sends, sizes)[0]],
    }
    out = torch.ones(transport.islands)
    for what, exchange in (
        ("sum", lambda: transport.weighted_sum([out], [1.0] * transport.islands, out)),
        ("broadcast", lambda: transport.broadcast([out])),
    ):
        with pytest.raises(TransportError) as error:
            exchange()
        seen[what] = str(error.value)
    return seen


def collective_main(out: str) -> int:
    transport = Collective.open(torch.device("cpu"), 60.0)
    me = transport.local[0]
    transport.gather([torch.zeros(1)])
    if me == VICTIM:
        os._exit(0)
    Path(out, f"{me}.json").write_text(json.dumps(exchanges(transport)), encoding="utf-8")
    return 0


def test_every_exchange_is_that_of_processes_one_of_which_died(tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = [runs.start(collective_main, (str(tmp_path),), log, e) for e in runs.islands_environment(ISLANDS)]
    assert [runs.wait(child, log) for child in started] == [0] * ISLANDS, log.read_text(encoding="utf-8")

    def job(transport: Relayed) -> dict[str, object]:
        transport.gather([torch.zeros(1)])
        return exchanges(transport)

    def victim(transport: Doomed) -> None:
        transport.last = 1
        job(transport)

    found = survivors(job, victim)
    assert sorted(found) == [0, 1, 3]
    for k, seen in found.items():
        assert seen == json.loads((tmp_path / f"{k}.json").read_text(encoding="utf-8"))
        assert seen["lost"] == [VICTIM]


def heard(transport: Relayed) -> list[list[int]]:
    """Who was heard in each of three gathers."""
    table = [transport.gather_present([torch.zeros(1)]) for _ in range(3)]
    return [[k for k, came in enumerate(rows) if came is not None] for rows in table]


@pytest.mark.parametrize("posts", [True, False])
def test_what_an_island_had_posted_is_heard_by_all_or_none(posts: bool) -> None:
    def victim(transport: Doomed) -> None:
        transport.last, transport.posts = 2, posts
        heard(transport)

    everyone, left = [0, 1, 2, 3], [0, 1, 3]
    assert survivors(heard, victim) == {k: [everyone, everyone if posts else left, left] for k in left}


def test_a_loss_in_an_exchange_that_needs_all_who_were_there_is_an_error() -> None:
    kinds: list[Callable[[Relayed], object]] = [
        lambda transport: transport.gather([torch.zeros(1)]),
        lambda transport: transport.gather_sized([torch.zeros(1, dtype=torch.uint8)]),
        lambda transport: transport.swap_rows([[row(k) for k in range(ISLANDS)]], [[1] * ISLANDS]),
    ]

    for kind in kinds:

        def job(transport: Relayed, kind: Callable[[Relayed], object] = kind) -> str:
            transport.goes_on = True
            with pytest.raises(TransportError, match=r"islands \[2\] are gone: its process is gone. Nothing was") as e:
                kind(transport)
            return str(e.value)

        def victim(transport: Doomed, kind: Callable[[Relayed], object] = kind) -> None:
            transport.goes_on, transport.last = True, 1
            kind(transport)

        assert sorted(survivors(job, victim)) == [0, 1, 3]


def test_the_last_island_that_is_left_fails() -> None:
    transport = Relayed(3, 0, lambda request: lambda: Answer(number=0, rows=(), lost={1: GONE, 2: GONE}))
    with pytest.raises(TransportError, match="has lost all others: its process is gone"):
        transport.gather_present([torch.zeros(1)])
    assert transport.lost == {}, "as if nothing had come, so that what is saved is whole"


@pytest.mark.parametrize(
    ("lost", "rows"),
    [
        ({0: GONE}, 2),  # oneself
        ({3: GONE}, 2),  # nobody
        ({1: GONE}, 2),  # with a row all the same
        ({1: GONE}, 0),
        ({}, 1),
    ],
)
def test_answers_that_can_not_be_are_refused(lost: dict[int, str], rows: int) -> None:
    def post(request: Request) -> Callable[[], Answer]:
        return lambda: Answer(number=request.number, rows=(row(1),) * rows, lost=lost)

    with pytest.raises(TransportError, match=r"can't be lost in exchange 0|rows came in exchange 0"):
        Relayed(3, 0, post).gather_present([row(1)])


def test_an_island_that_was_lost_is_not_there_again() -> None:
    answers = [Answer(number=0, rows=(row(1),), lost={1: GONE}), Answer(number=1, rows=(row(1), row(1)))]
    transport = Relayed(3, 0, lambda request: lambda: answers[request.number])
    assert [r is None for r in transport.gather_present([row(1)])] == [False, True, False]
    with pytest.raises(TransportError, match=r"islands \[\] can't be lost in exchange 1"):
        transport.gather_present([row(1)])


def test_a_loss_where_nobody_may_be_lost_is_refused() -> None:
    transport = Relayed(3, 0, lambda request: lambda: Answer(number=0, rows=(row(1),), lost={1: GONE}))
    with pytest.raises(TransportError, match=r"islands \[1\] can't be lost in exchange 0"):
        transport.gather([row(1)])


def gather(number: int, present: bool = True) -> Request:
    return Request(number=number, kind="gather", rows=(row(1),), present=present)


def test_a_relay_tells_which_exchanges_can_not_do_without_an_island() -> None:
    relay = Relay(3)
    for k in range(3):
        relay.offer(k, gather(0))
    assert relay.goes_on
    total = Request(number=1, kind="sum", weights=(0.5, 0.5, 0.0), rows=(torch.zeros(4, dtype=torch.uint8),))
    relay.offer(2, total)
    assert relay.lose(2, GONE) == []
    relay.offer(0, total)
    assert relay.waits_for() is None, "it had posted it"
    answers = relay.offer(1, total)
    assert [dict(answers[k].lost) for k in sorted(answers)] == [{}, {}]
    relay.offer(0, Request(number=2, kind="broadcast", rows=(row(1),)))
    assert relay.waits_for() == (2, 2)


def test_a_relay_keeps_what_an_island_had_posted() -> None:
    relay = Relay(3)
    relay.offer(2, gather(0))
    relay.lose(2, GONE)
    relay.offer(0, gather(0))
    answers = relay.offer(1, gather(0))
    assert {k: (len(a.rows), dict(a.lost)) for k, a in answers.items()} == {0: (2, {}), 1: (2, {})}
    relay.offer(0, gather(1))
    answers = relay.offer(1, gather(1))
    assert {k: (len(a.rows), dict(a.lost)) for k, a in answers.items()} == {0: (1, {2: GONE}), 1: (1, {2: GONE})}


def test_a_relay_does_not_go_on_by_the_word_of_one() -> None:
    relay = Relay(2)
    relay.offer(0, gather(0))
    assert not relay.goes_on
    with pytest.raises(TransportError, match="exchange 0: gather among those present against gather"):
        relay.offer(1, gather(0, present=False))


def test_a_relay_refuses_those_that_are_lost_and_sums_without_them() -> None:
    relay = Relay(3)
    relay.lose(1, GONE)
    with pytest.raises(IslandError, match=r"island 1 is lost \(its process is gone\) and may not come back"):
        relay.offer(1, gather(0))
    with pytest.raises(IslandError, match="island 0 wants a broadcast among those present"):
        relay.offer(0, Request(number=0, kind="broadcast", rows=(row(1),), present=True))


ROLL, HEARD = 1, 2
KEYS = HEARD + gathers(ISLANDS)
SEALED, MASKED, SUMS, CONFIRM = range(KEYS + 1, KEYS + 5)
VERIFY = CONFIRM + gathers(ISLANDS) + 1


@pytest.mark.parametrize("posts", [False, True])
@pytest.mark.parametrize("last", range(ROLL, VERIFY + 1))
def test_masked_rounds_go_on_without_an_island(last: int, posts: bool) -> None:
    """Wherever it dies, the others commit one sum, exact to the bit, and the next one without it."""
    pytest.importorskip("cryptography")
    from tests.secure.test_secure import build, one_round, plain_sum

    def train(transport: Relayed, arm: Callable[[], None] = lambda: None) -> tuple[list[Tensor], list[SyncReport]]:
        sync, reports = build(transport, SecureSum()), list[SyncReport]()
        sync.listeners.append(reports.append)
        arm()
        return [one_round(sync) for _ in range(2)], reports

    def victim(transport: Doomed) -> None:
        def arm() -> None:
            transport.last, transport.posts = transport.done + last, posts

        train(transport, arm)

    counted = last > SUMS or (last == SUMS and posts)
    left = range(ISLANDS) if counted else [0, 1, 3]
    (first, second), _ = (found := survivors(train, victim))[0]
    if last == ROLL and not posts:
        torch.testing.assert_close(first, plain_sum(left, SecureSum()), rtol=1e-6, atol=1e-7)  # weights of three
    else:
        assert torch.equal(first, plain_sum(left, SecureSum()))
    assert sorted(found) == [0, 1, 3]
    for weights, reports in found.values():
        assert torch.equal(weights[0], first) and torch.equal(weights[1], second)
        assert [list(r.dropped) for r in reports] == [[] if counted else [VICTIM], [VICTIM]]
        assert reports[1].dropped == {VICTIM: GONE}


def test_too_few_to_unmask_commit_nothing() -> None:
    pytest.importorskip("cryptography")
    from tests.secure.test_secure import build, one_round

    def train(transport: Relayed) -> int:
        sync = build(transport, SecureSum(threshold=1.0))
        with pytest.raises(SyncError, match=r"3 of 4 parties are left, sync\.secure needs 4"):
            one_round(sync)
        return sync.round

    def victim(transport: Doomed) -> None:
        sync = build(transport, SecureSum(threshold=1.0))
        transport.last = transport.done + MASKED
        one_round(sync)

    assert survivors(train, victim) == dict.fromkeys([0, 1, 3], 0)
