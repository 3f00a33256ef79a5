"""Sizes and texts that a peer announces: refused with its name before anything is allocated for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lowcomm.federation.packing import unpack, unpack_answers, unpack_requests
from lowcomm.island.mesh import Mesh
from lowcomm.island.part import gather_texts
from lowcomm.sync.handshake import compare
from lowcomm.transport import Collective, Simulated
from lowcomm.transport.base import texts_of
from lowcomm.transport.relay import Answer, Request
from lowcomm.transport.relayed import Relayed
from lowcomm.types import DivergenceError, PayloadError, TransportError


def row(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize("size", [2**62, 2**63 - 1, -1, -(2**63), 101])
def test_processes(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = cast("Collective", object.__new__(Collective))
    transport.islands, transport.local = 2, (0,)
    monkeypatch.setattr(Collective, "gather", lambda self, rows: torch.tensor([[3], [size]]))
    monkeypatch.setattr(torch, "empty", None)
    with pytest.raises(TransportError, match=f"island 1 announces a row of {size} bytes, 0 to 100 are possible"):
        transport.gather_sized([row(b"abc")], 100)


def test_a_relay() -> None:
    def post(request: Request) -> Any:
        return lambda: Answer(number=request.number, rows=(torch.zeros(101, dtype=torch.uint8),))

    with pytest.raises(TransportError, match="island 1 announces a row of 101 bytes, 0 to 100 are possible"):
        Relayed(2, 0, post).gather_sized([row(b"abc")], 100)


def test_the_simulation() -> None:
    with pytest.raises(TransportError, match="island 1 announces a row of 4 bytes, 0 to 3 are possible"):
        Simulated(2).gather_sized([row(b"abc"), row(b"abcd")], 3)


@pytest.mark.parametrize("size", [2**62, -1])
def test_ranks_of_an_island(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = cast("Mesh", SimpleNamespace(island=3, rows=lambda own: torch.tensor([[int(own)], [size]])))
    monkeypatch.setattr(torch, "zeros", None)
    with pytest.raises(TransportError, match=f"rank 1 of island 3 announces {size} bytes"):
        gather_texts(mesh, "{}")


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_none(text: bytes) -> None:
    with pytest.raises(TransportError, match="island 1 sent text that is no JSON") as caught:
        texts_of([row(b"{}"), row(text) if text else torch.empty(0, dtype=torch.uint8)])
    assert "\n" not in str(caught.value)


def test_a_handshake_that_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = Simulated(2)
    monkeypatch.setattr(transport, "gather_sized", lambda rows: [rows[0], row(b"[1]")])
    with pytest.raises(DivergenceError, match="islands 0 and 1 disagree on every: 4 against None"):
        compare(transport, [{"every": 4}, {"every": 4}])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sizes": [4611686018427387904], "version": 3}'])
def test_messages_of_a_federation(text: str) -> None:
    flwr = pytest.importorskip("flwr.app")
    content = flwr.RecordDict({"header": flwr.ConfigRecord({"json": text, "rows": b"abc"})})
    for read in (unpack, unpack_answers, unpack_requests):
        with pytest.raises(PayloadError):
            read(content)
