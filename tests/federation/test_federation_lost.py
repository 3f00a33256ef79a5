"""A federation that goes on without a client that is lost, or does not: the server's session, and what it says."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lowcomm.federation.mailbox import Outcome
from lowcomm.transport.relay import Answer
from lowcomm.transport.relayed import Relayed
from lowcomm.types import PayloadError, StoppedError, SyncError
from tests.federation.test_federation import Job, Loopback, needs_flower, pytestmark  # noqa: F401 - the mark is for this module

VICTIM = 1


def gathers(transport: Relayed, exchanges: int = 6) -> None:
    """Exchanges among those present; nobody but the victim may be missing."""
    for i in range(exchanges):
        came = transport.gather_present([torch.tensor([i])])
        assert [row is None for row in came] == [k in transport.lost for k in range(transport.islands)]
        assert all(row is None or row.tolist() == [i] for row in came)
        assert set(transport.lost) <= {VICTIM}


def dies(transport: Relayed) -> None:
    gathers(transport, 2)
    raise SystemExit


def fails(transport: Relayed) -> None:
    gathers(transport, 2)
    raise ValueError("the loss is\nNaN")


def replays(transport: Relayed) -> None:
    gathers(transport, 2)
    transport._number = 0  # pyright: ignore[reportPrivateUsage] - as one that started again would
    gathers(transport)


def stops(transport: Relayed) -> None:
    gathers(transport, 2)
    raise KeyboardInterrupt


def run(jobs: list[Job], grid: Loopback | None = None) -> tuple[Loopback, list[Outcome], list[dict[str, object]]]:
    """(the grid, how those ended that were not lost, those that were). Raises FederationError."""
    from lowcomm.federation.session import Session

    grid = grid or Loopback(jobs)
    one = Session(grid, len(jobs), 5.0)  # pyright: ignore[reportArgumentType]
    return grid, one.run(), [vars(client) for client in one.lost()]


@needs_flower
@pytest.mark.parametrize(
    ("job", "cause"),
    [
        (dies, "it has left, or its SuperNode is gone"),
        (fails, "it ended with exit code 1: the loss is NaN"),
        (replays, "island 1 posted exchange 0, its next is 2: replayed or lost"),
    ],
)
def test_a_client_that_is_lost_is_named_and_the_others_end_well(
    job: Job, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lowcomm"):
        grid, outcomes, lost = run([gathers, job, gathers])
    assert [o.code for o in outcomes] == [0, 0]
    assert lost == [{"client": 1, "round": None, "cause": cause}]
    assert not grid.errors.keys() & {100, 102}
    assert [r.message for r in caplog.records] == [f"client 1 is lost, the others go on without it: {cause}"]


@needs_flower
def test_a_message_that_can_not_be_read_loses_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowcomm.federation import session

    read = session.unpack_requests

    def unpack(content: object) -> object:
        found = read(content)  # pyright: ignore[reportArgumentType]
        if found[0] == VICTIM and any(request.number > 2 for request in found[2]):
            raise PayloadError("a client's message can't be read")
        return found

    monkeypatch.setattr(session, "unpack_requests", unpack)
    grid, outcomes, lost = run([gathers, gathers, gathers])
    assert [o.code for o in outcomes] == [0, 0]
    assert lost == [{"client": 1, "round": None, "cause": "a client's message can't be read"}]
    assert list(grid.errors) == [101], "it is told, too"


@needs_flower
def test_the_round_is_what_the_others_say(tmp_path: Path) -> None:
    from lowcomm.federation.server import write_outcome
    from lowcomm.federation.session import Session

    one = Session(Loopback([gathers, dies, gathers]), 3, 5.0)  # pyright: ignore[reportArgumentType]
    outcomes = one.run()
    for client in one.nodes.values():
        if client.outcome in outcomes:
            client.outcome = Outcome(code=0, weights_sha256="same", lost=((1, 4),))
    write_outcome(tmp_path / "outcome.json", None, outcomes, one.lost())
    found = json.loads((tmp_path / "outcome.json").read_text())
    assert (found["error"], found["code"]) == (None, 0)
    assert found["lost"] == [{"client": 1, "round": 4, "cause": "it has left, or its SuperNode is gone"}]


@needs_flower
def test_without_clients_the_run_fails() -> None:
    from lowcomm.federation.session import FederationError

    with pytest.raises(
        FederationError, match=r"all clients are lost, client . first: it ended with exit code 1: the lo"
    ):
        run([fails, fails, fails])


@needs_flower
def test_with_one_that_was_stopped_all_stop_also_where_one_may_be_lost() -> None:
    grid, outcomes, lost = run([gathers, stops, gathers])
    assert ([o.code for o in outcomes], lost) == ([3, 3, 3], [])
    assert all(isinstance(grid.errors[node], StoppedError) for node in (100, 102))


@needs_flower
def test_a_sum_that_waits_for_a_lost_client_ends_the_run() -> None:
    from lowcomm.federation.session import FederationError

    def adds(transport: Relayed) -> None:
        gathers(transport, 2)
        out = torch.ones(3)
        transport.weighted_sum([out], [1.0] * 3, out)

    grid = Loopback([adds, dies, adds])
    with pytest.raises(FederationError, match=r"client 1 is lost, and exchange 2 needs all: it has left"):
        run([adds, dies, adds], grid)
    assert all(isinstance(grid.errors[node], SyncError) for node in (100, 102))


@needs_flower
def test_other_weights_of_those_that_are_left_are_an_error() -> None:
    from lowcomm.federation.session import FederationError

    def differs(transport: Relayed) -> str:
        gathers(transport)
        return str(transport.local[0])

    with pytest.raises(FederationError, match="the clients ended with different global weights"):
        run([differs, dies, differs])


@needs_flower
def test_a_client_that_comes_back_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from lowcomm.federation import session

    monkeypatch.setattr(session, "NODES_S", 0.05)
    turned_away = threading.Event()

    def waits(transport: Relayed) -> None:
        gathers(transport, 4)
        assert VICTIM in transport.lost
        assert turned_away.wait(20)
        gathers(transport, 2)

    def comes_back(transport: Relayed) -> None:
        try:
            transport.gather([torch.tensor([0])])
        finally:
            turned_away.set()

    grid = Loopback([waits, dies, waits])
    found: list[Outcome] = []
    one = session.Session(grid, 3, 5.0)  # pyright: ignore[reportArgumentType]
    server = threading.Thread(target=lambda: found.extend(one.run()))
    server.start()
    until(lambda: 101 in one.nodes and one.nodes[101].lost is not None)
    grid.start(101, comes_back, VICTIM, 3)
    server.join(30)
    assert [o.code for o in found] == [0, 0]
    (error,) = grid.errors.values()
    assert "client 1 was lost to the run, which goes on without it, and may not come back (it has left" in str(error)
    assert "Fix: let the run end, or stop it and start all clients with --resume" in str(error)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@needs_flower
def test_answers_come_back_as_they_were_and_causes_are_short() -> None:
    from lowcomm.federation.packing import CAUSE, pack_answers, unpack_answers

    answers = [Answer(number=0, rows=(), lost={1: "x" * 2 * CAUSE, 5: ""}), Answer(number=1, rows=())]
    found, _ = unpack_answers(pack_answers(answers))
    assert [dict(a.lost) for a in found] == [{1: "x" * CAUSE, 5: ""}, {}]


@needs_flower
@pytest.mark.parametrize(
    "lost", [None, 3, [[1]], [["1", "x"]], [[True, "x"]], [[-1, "x"]], [[1, 2]], [[1, "x"], [1, "y"]], [[1, "x" * 501]]]
)
def test_mangled_losses_are_payload_errors(lost: object) -> None:
    from flwr.app import ConfigRecord, RecordDict

    from lowcomm.federation.packing import pack_answers, unpack_answers

    record = pack_answers([Answer(number=0, rows=(), lost={1: "gone"})]).config_records["header"]
    header = json.loads(str(record["json"]))
    assert header["answers"][0]["lost"] == [[1, "gone"]]
    header["answers"][0]["lost"] = lost
    with pytest.raises(PayloadError, match="the server's message can't be read"):
        unpack_answers(RecordDict({"header": ConfigRecord({"json": json.dumps(header), "rows": record["rows"]})}))
