"""The handshake before the first round: islands compare versions, settings, names, shapes and dtypes.

A difference is refused with both sides' values, since a run with two shapes of model ends in garbage, not in an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from lowcomm.transport.base import Transport
from lowcomm.types import DivergenceError

Facts = Mapping[str, str | int | float | Mapping[str, str]]
"""What must be equal everywhere: JSON scalars, or a mapping (tensor name -> shape and dtype)."""


def compare(transport: Transport, facts: Facts) -> None:
    """Raise DivergenceError on every island if any island's facts differ, naming the first that does."""
    text = json.dumps(facts, sort_keys=True).encode()
    row = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    rows = transport.gather_sized([row] * len(transport.local))
    own = json.loads(text)
    for island, other in enumerate(rows):
        theirs = json.loads(bytes(other.numpy()))
        for key in sorted({*own, *theirs}):
            if own.get(key) != theirs.get(key):
                _refuse(key, own.get(key), theirs.get(key), transport.local[0], island)


def _refuse(key: str, mine: object, theirs: object, me: int, them: int) -> None:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        name = next(n for n in [*mine, *theirs] if mine.get(n) != theirs.get(n))
        key, mine, theirs = f"{key}[{name}]", mine.get(name), theirs.get(name)
    raise DivergenceError(
        f"islands {me} and {them} disagree on {key}: {mine!r} against {theirs!r}. Start all with the same code and recipe."
    )
