"""Reads the coming batches before any is used, on all ranks of an island or on none.

A stream may fail on one rank only, whose row can't be read or whose connection is lost. Its island's other ranks would
go on into an exchange of gradients that this one never enters. So ranks that read streams tell each other, in one byte
per rank and inner step, and all of them leave at the same step, which is saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lowcomm.data.shard import Shard
from lowcomm.island.mesh import Mesh
from lowcomm.types import DataError


def read_ahead(shards: Sequence[Shard], batches: int, mesh: Mesh | None) -> None:
    """Prepare `batches` micro-batches of each shard. mesh: this island's ranks where they read streams; None: alone.

    Raises DataError, on each of them, if one can't be read on any.
    """
    failure: DataError | None = None
    try:
        for shard in shards:
            shard.prepare(batches)
    except DataError as error:
        failure = error
    failed = [] if mesh is None else mesh.rows(torch.tensor([failure is not None])).flatten().nonzero().flatten()
    if failure is not None:
        raise failure
    if len(failed):
        ranks = ", ".join(str(int(r)) for r in failed)
        raise DataError(f"rank {ranks} of this island can't read its text, and says why")
