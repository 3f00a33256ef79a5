"""The arguments of a LocalSGD that a function with settings of its own passes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch

from lowcomm.aggregate import Aggregator
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.island.part import Part
from lowcomm.privacy import Mechanism
from lowcomm.state.deadlines import OnLate
from lowcomm.state.spec import BufferRule, Clients
from lowcomm.transport import Transport


class SyncArguments(TypedDict, total=False):
    """All but the number of steps and the parts that a paper sets: outer, codec, schedule. LocalSGD explains them."""

    island: Part | None
    aggregator: Aggregator | None
    exchange: ExchangeChoice | None
    transport: Transport | None
    buffers: Mapping[str, BufferRule] | None
    outer_device: torch.device | str | None
    seed: int
    quorum: float
    norm_bound: float | None
    privacy: Mechanism | None
    on_late: OnLate
    late_tolerance_s: float
    clients: Clients | None
