"""Requests and answers as Flower records: a JSON header and the rows' bytes, one after another.

Up to SMALL_BYTES of rows travel inside the message; more become a Flower array, which Flower cuts into objects of 5 MiB
that are sent as HTTP requests of their own, at most two at a time: no message grows with the model. Nothing is pickled
and no array format is parsed; sizes are checked against the bytes that came before a row is cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lowcomm.federation.mailbox import Failure, Outcome
from lowcomm.transport.relay import KINDS, Answer, Request
from lowcomm.types import PayloadError

if TYPE_CHECKING:
    from flwr.app import RecordDict

SMALL_BYTES = 1 << 16
VERSION = 3
CAUSE = 500
"""Characters of the cause for which a client is lost."""


def pack(header: Mapping[str, Any], rows: Sequence[Tensor]) -> RecordDict:
    """rows: uint8, 1-D, on the CPU."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    text = json.dumps({**header, "version": VERSION, "sizes": [row.numel() for row in rows]})
    data = b"".join(row.numpy().data for row in rows)
    if len(data) <= SMALL_BYTES:
        return RecordDict({"header": ConfigRecord({"json": text, "rows": data})})
    whole = Array(dtype="uint8", shape=(len(data),), stype="lowcomm.bytes", data=data)
    return RecordDict({"header": ConfigRecord({"json": text}), "rows": ArrayRecord({"rows": whole})})


def unpack(content: RecordDict) -> tuple[dict[str, Any], list[Tensor]]:
    """What `pack` was given. Raises PayloadError for anything else."""
    try:
        record = content.config_records["header"]
        header = json.loads(str(record["json"]))
        arrays = content.array_records.get("rows")
        data = arrays["rows"].data if arrays is not None else record["rows"]
        sizes = header["sizes"]
        version = header["version"]
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PayloadError(f"a message of the federation can't be read: {type(error).__name__} {error}") from error
    if version != VERSION:
        raise PayloadError(
            f"a message has format {version!r}, this side {VERSION}: install the same lowcomm everywhere"
        )
    listed = isinstance(sizes, list) and all(type(n) is int and n >= 0 for n in sizes)
    if not isinstance(data, bytes) or not listed or sum(sizes) != len(data):
        raise PayloadError("a message of the federation does not have the bytes that its header names")
    whole = (
        torch.from_numpy(np.frombuffer(bytearray(data), dtype=np.uint8)) if data else torch.empty(0, dtype=torch.uint8)
    )
    return header, list(whole.split(sizes))


def pack_requests(client: int, clients: int, requests: Sequence[Request], outcome: Outcome | None = None) -> RecordDict:
    """What a client sends."""
    listed = [
        {"number": r.number, "kind": r.kind, "weights": r.weights, "present": r.present, "rows": len(r.rows)}
        for r in requests
    ]
    end = None if outcome is None else vars(outcome)
    header = {"client": client, "clients": clients, "requests": listed, "outcome": end}
    return pack(header, [row for r in requests for row in r.rows])


def unpack_requests(content: RecordDict) -> tuple[int, int, list[Request], Outcome | None]:
    """(client, clients, requests, outcome). Raises PayloadError."""
    header, rows = unpack(content)
    try:
        requests = [
            Request(
                number=int(r["number"]),
                kind=KINDS[KINDS.index(r["kind"])],
                weights=tuple(float(w) for w in r["weights"]),
                present=_flag(r["present"]),
                rows=tuple(part),
            )
            for r, part in _dealt(header["requests"], rows)
        ]
        end = header["outcome"]
        outcome = (
            None
            if end is None
            else Outcome(
                code=end["code"],
                weights_sha256=end["weights_sha256"],
                error=end["error"],
                lost=tuple((_number(k), _number(r)) for k, r in end["lost"]),
            )
        )
        return int(header["client"]), int(header["clients"]), requests, outcome
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PayloadError(f"a client's message can't be read: {type(error).__name__} {error}") from error


def pack_answers(answers: Sequence[Answer], failure: Failure | None = None, client: int | None = None) -> RecordDict:
    """What the server sends; client: to whom, None before it has said who it is, when there are no answers yet."""
    listed = [
        {"number": a.number, "rows": len(a.rows), "lost": [[k, cause[:CAUSE]] for k, cause in a.lost.items()]}
        for a in answers
    ]
    failed = None if failure is None else vars(failure)
    return pack({"client": client, "answers": listed, "failure": failed}, [row for a in answers for row in a.rows])


def unpack_answers(content: RecordDict, client: int | None = None) -> tuple[list[Answer], Failure | None]:
    """(answers, why the run failed elsewhere). Raises PayloadError; client: None takes answers to any client."""
    header, rows = unpack(content)
    try:
        answers = [
            Answer(number=int(a["number"]), rows=tuple(part), lost=_lost(a["lost"]))
            for a, part in _dealt(header["answers"], rows)
        ]
        whose, said = header["client"], header["failure"]
        failure = None if said is None else Failure(cause=str(said["cause"]), stopped=_flag(said["stopped"]))
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PayloadError(f"the server's message can't be read: {type(error).__name__} {error}") from error
    if answers and client is not None and whose != client:
        raise PayloadError(f"the server's message has answers for client {whose}, this is client {client}")
    return answers, failure


def _lost(listed: Sequence[Any]) -> dict[int, str]:
    causes = {_number(k): cause for k, cause in listed}
    if len(causes) != len(listed) or not all(isinstance(c, str) and len(c) <= CAUSE for c in causes.values()):
        raise ValueError("causes of losses")
    return causes


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of a client or round")
    return value


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _dealt(listed: Sequence[Mapping[str, Any]], rows: Sequence[Tensor]) -> list[tuple[Mapping[str, Any], list[Tensor]]]:
    """Each entry with as many of the rows as it says that it has."""
    counts = [entry["rows"] for entry in listed]
    if any(type(n) is not int or n < 0 for n in counts) or sum(counts) != len(rows):
        raise ValueError("rows are missing")
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [(entry, list(rows[end - n : end])) for entry, n, end in zip(listed, counts, ends, strict=True)]
