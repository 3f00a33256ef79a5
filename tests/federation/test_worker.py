"""The thread between trainer and SuperNode: where Flower would interrupt the process, the trainer gets a cause."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lowcomm.federation import worker
from lowcomm.federation.mailbox import Mailbox
from tests.federation.test_federation import needs_flower, pytestmark  # noqa: F401 - the mark is for this module

WAIT_S = 20


@pytest.fixture
def interrupts() -> Iterator[list[int]]:
    """SIGINTs that this process gets."""
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


class Node:
    """A SuperNode's Runtime API with one task, whose token is void when the output is there."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.beaten = threading.Event()

    def SendTaskHeartbeat(self, request: object) -> object:  # noqa: N802 - Flower's name
        from flwr.proto.runtime_pb2 import SendTaskHeartbeatResponse

        self.calls.append("heartbeat")
        self.beaten.set()
        return SendTaskHeartbeatResponse(success=False)

    def close(self) -> None:
        self.calls.append("close")


@needs_flower
def test_heartbeats_end_before_the_output_and_a_refused_one_interrupts_nobody(
    monkeypatch: pytest.MonkeyPatch, interrupts: list[int]
) -> None:
    """On a machine that is slow the first heartbeat would come after the output, when the token is void."""
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supernode.runtime import run_clientapp

    node, stop = Node(), HeartbeatSender.stop

    def app(message: object, context: object) -> str:
        assert node.beaten.wait(WAIT_S)
        return "reply"

    def stopped(sender: HeartbeatSender) -> None:
        stop(sender)
        node.calls.append("stopped")

    monkeypatch.setattr(HeartbeatSender, "stop", stopped)
    monkeypatch.setattr(worker, "_connect", lambda address, interceptors: node)
    monkeypatch.setattr(worker, "_pull", lambda client: ("message", "context"))
    monkeypatch.setattr(run_clientapp, "push_message", lambda client, reply, context: node.calls.append(reply))
    monkeypatch.setattr(run_clientapp, "push_task_output", lambda **_: node.calls.append("output"))
    one: Any = worker.Worker(app, Mailbox(1.0), "127.0.0.1:1", b"secret")  # pyright: ignore[reportArgumentType]
    one._answer("token")
    assert [call for call in node.calls if call != "heartbeat"] == ["reply", "stopped", "output", "close"]
    assert interrupts == []


@needs_flower
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_call_is_an_error_and_no_interrupt(interrupts: list[int], status: int) -> None:
    import httpx
    from flwr.supercore.retry import make_simple_http_retry_invoker

    def refused() -> None:
        request = httpx.Request("POST", "http://127.0.0.1:1")
        raise httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))

    patient = make_simple_http_retry_invoker()
    patient.should_giveup = worker.is_final(patient.should_giveup)
    with pytest.raises(httpx.HTTPStatusError):
        patient.invoke(refused)
    assert interrupts == []
