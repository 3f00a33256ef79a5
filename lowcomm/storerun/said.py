"""What a member says of itself beside its Delta, for people: a section of the contribution, no part of history."""

from __future__ import annotations

from collections.abc import Mapping

from lowcomm.store import text
from lowcomm.store.applied import UsedOne
from lowcomm.store.contribution import Header
from lowcomm.store.objects import Objects
from lowcomm.types import PayloadError

LOG = "log"
MOST_BYTES = 1000
HEAD_BYTES = 1 << 16


def said_of(loss: float | None, round_s: float | None) -> bytes:
    """Mean loss since the last line of the log (nats per token), seconds of the round."""
    return text.write({"loss": None if loss is None else round(loss, 6), "round_s": round_s}, MOST_BYTES)


def read_said(data: bytes | None) -> Mapping[str, float]:
    """The numbers in such a section; none where there is nothing to read."""
    if data is None:
        return {}
    try:
        found = text.read(data, MOST_BYTES)
    except PayloadError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: float(v) for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def loss_of(one: UsedOne) -> float | None:
    """What a contribution says of its author's loss."""
    return read_said(one.sections.get(LOG)).get("loss")


def header_of(objects: Objects, key: str) -> tuple[Header, Mapping[str, float]] | None:
    """A contribution's header and what it says, without its payload; None: it can't be read."""
    head = objects.get_range(key, 0, HEAD_BYTES)
    if head is None:
        return None
    try:
        header, start = Header.read(head)
    except PayloadError:
        return None
    at = start
    for section in header.sections:
        if section.name == LOG and not header.parts and section.size <= MOST_BYTES:
            return header, read_said(objects.get_range(key, at, section.size))
        at += section.size
    return header, {}
