"""Columns that stand beside a row's conversation and belong to it: the system's prompt, earlier turns, old tools.

LLaMA-Factory and ShareGPT keep `system` and `history` there, OpenAI's older files `functions`, and `weight` for a row.
A row without them would be learnt as if nobody had said what stands in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lowcomm.data.source import Message
from lowcomm.types import ConfigError

SYSTEM = "system"
_UNREAD = {
    "history": "earlier turns are read from the list of messages: write them there",
    "functions": "tools are read from the column tools: write them there",
}
"""Columns that mean something to the model and are not read, and what to do."""
_WEIGHT = "weight"
BESIDE = (SYSTEM, *_UNREAD, _WEIGHT)


def with_beside(
    messages: tuple[Message, ...], row: Mapping[str, object], place: str, read: Sequence[str]
) -> tuple[Message, ...]:
    """The messages after the turn of a `system` column, if the row fills one; raises ConfigError for what is not read.

    read: columns of the row that are looked at.
    """
    found = {name: row[name] for name in BESIDE if name in read and row.get(name) not in (None, "", [], {})}
    for name, fix in _UNREAD.items():
        if name in found:
            raise _beside(place, name, found[name], "nothing", fix)
    if found.get(_WEIGHT, 1) not in (1, "1", "1.0"):  # a CSV file has texts
        raise _beside(place, _WEIGHT, found[_WEIGHT], "1", "drop the row, or give its answers a weight of 0 or 1")
    system = found.get(SYSTEM)
    if system is None:
        return messages
    if not isinstance(system, str) or not system.strip():
        raise _beside(place, SYSTEM, system, "the system's prompt as text", "mend the column")
    if messages[0].role != SYSTEM:
        return (Message(SYSTEM, system), *messages)
    if messages[0].content.strip() == system.strip():
        return messages
    raise _beside(place, SYSTEM, system, "the text of the first message, which is the system's", "keep one of the two")


def _beside(place: str, name: str, value: object, legal: str, fix: str) -> ConfigError:
    return ConfigError(
        f"data.source: the column {name!r} of {place} holds {str(value)[:40]!r} beside the conversation; "
        f"legal: {legal}; fix: {fix}, or pass --data.source.chat.ignore {name} if it means nothing to the model"
    )
