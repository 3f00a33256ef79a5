"""What secure aggregation refuses before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from lowcomm.aggregate.base import Aggregator
from lowcomm.codec.base import Codec
from lowcomm.codec.fp32 import Fp32
from lowcomm.schedule import EveryH, Growing, Schedule
from lowcomm.secure import SecureSum
from lowcomm.types import ConfigError


def check_secure(secure: SecureSum | None, codec: Codec, aggregator: Aggregator, schedule: Schedule) -> None:
    """Raise ConfigError for settings out of range, and for parts that need more than a sum of whole contributions."""
    if secure is None:
        return
    secure.check()
    rule = type(aggregator).__name__
    if aggregator.needs != "sum":
        raise ConfigError(
            f"sync.aggregator = {rule} is not allowed with sync.secure: it must see each contribution, and nobody can "
            "read one. Fix: use Mean, FFA or RoLoRA with a codec that sends all, or leave sync.secure out"
        )
    if not isinstance(codec, Fp32):
        raise ConfigError(
            f"sync.codec = {type(codec).__name__} is not allowed with sync.secure: masked payloads are added as "
            "integers before anybody decodes them. Fix: use Fp32; sync.secure sends sync.secure.bits each"
        )
    if not isinstance(schedule, EveryH | Growing):
        raise ConfigError(
            f"sync.schedule = {type(schedule).__name__} is not allowed with sync.secure: averaged gradients are not "
            "masked, and keys are exchanged while training waits. Fix: use EveryH"
        )


def check_maskable(secure: SecureSum | None, ranks: int, averaged: Sequence[str]) -> None:
    """Raise ConfigError for islands of several ranks, and buffers that would be averaged without masks."""
    if secure is None:
        return
    if ranks > 1:
        raise ConfigError(
            f"island.size = {ranks} is not allowed with sync.secure: who drops is decided per island. "
            "Fix: islands of one rank"
        )
    if averaged:
        raise ConfigError(
            f"buffers {', '.join(averaged)} are averaged between islands without masks, which sync.secure does not "
            "allow. Fix: keep them local, buffers={'*': 'local'}"
        )
