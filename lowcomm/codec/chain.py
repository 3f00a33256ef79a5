"""`first | stage`: which codecs may stand one behind the other.

    choose entries -> code their values -> pack the bytes
    TopK()          | Int8()            | Zstd()

No paper. A sparse codec may be followed by a dense one (`Recoded`), and any codec by one entropy stage (`Packed`).
"""

from __future__ import annotations

from lowcomm.codec.base import Codec
from lowcomm.codec.dense import Dense
from lowcomm.codec.packed import Packed
from lowcomm.codec.recoded import Recoded
from lowcomm.codec.sparse import Sparse
from lowcomm.codec.stage import Stage
from lowcomm.types import ConfigError


def join(first: Codec, stage: object) -> Codec:
    """`first | stage`. Raises ConfigError for parts that do not fit."""
    if isinstance(stage, Stage) and not isinstance(first, Packed):
        return Packed(first=first, stage=stage)
    if isinstance(stage, Dense) and isinstance(first, Sparse):
        return Recoded(first=first, values=stage)
    raise ConfigError(
        f"{first!r} | {stage!r} is not allowed: a sparse codec may be followed by a dense one, and any codec by one "
        "entropy stage at the end. Fix: TopK() | Int8() | Zstd()"
    )
