"""All-or-nothing commits: islands of several ranks sync shard by shard, and a replica must not be torn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from lowcomm.transport import Transport
from lowcomm.types import AbandonedError, SyncError, TransportError

Result = TypeVar("Result")


def all_or_nothing(transport: Transport, exchange: Callable[[], Result]) -> Result:
    """The result of `exchange`, if the exchanges of all ranks of all islands succeeded. Raises SyncError otherwise.

    Each island's ranks agree, then the islands, then the ranks again on what they heard: one byte per island and rank.
    A rank whose transport fails leaves the exchange, and the others of its island hear of it at the next place where
    they would have waited for it. Other errors (no quorum, an unusable sum) are seen alike by all and not talked about.
    """
    failure: SyncError | None = None
    result: Result | None = None
    try:
        result = exchange()
        transport.inside(torch.ones(1, dtype=torch.uint8))
    except SyncError as error:
        if not isinstance(error, TransportError) and not isinstance(error.__cause__, TransportError):
            raise
        failure = error
        if not _abandoned(error):
            transport.abandon()
    well = failure is None
    if failure is None or _abandoned(failure):  # this rank's own group works, and its peers wait to hear
        try:
            well = bool(transport.gather([torch.tensor([well], dtype=torch.uint8)]).all())
        except TransportError as error:
            failure = error
    well = bool(transport.inside(torch.tensor([well and failure is None], dtype=torch.uint8)).all())
    if failure is not None:
        raise failure
    if not well or result is None:
        raise SyncError(
            "another rank's part of the exchange failed, so this one is not used either. Nothing was committed: local "
            "weights are kept and the pseudo-gradient stays pending."
        )
    return result


def _abandoned(error: SyncError) -> bool:
    """Whether it was another rank of the island whose transport failed."""
    return isinstance(error, AbandonedError) or isinstance(error.__cause__, AbandonedError)
