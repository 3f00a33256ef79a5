"""Whether simulated islands can take turns on one model, and why not."""

from __future__ import annotations

from typing import Literal

from lowcomm.aggregate.lora.rule import LoraRule
from lowcomm.schedule import EveryH, Growing
from lowcomm.state.spec import SyncSpec
from lowcomm.types import require

Turns = Literal["auto", "on", "off"]
ClientState = Literal["memory", "disk"]
FEW = 8
"""Islands that have a model each unless they are told to take turns; then the files of a checkpoint are processes'."""


def against_turns(spec: SyncSpec) -> str | None:
    """Why islands of this spec need a model each; None: one is enough for all, with the same bits."""
    name, rule = type(spec.schedule).__name__, spec.aggregator
    if spec.exchange is not None:
        return f"with sync.exchange = {type(spec.exchange).__name__} each has global weights of its own"
    if not isinstance(spec.schedule, EveryH | Growing):
        return f"under {name} they do not begin every round with the global weights"
    if spec.codec.holds_back:
        return f"{type(spec.codec).__name__} leaves in their weights what was not sent"
    if spec.clients.moments is not None:
        return "sync.moments reads every island's inner optimizer in one exchange"
    if spec.buffers:
        return "sync.buffers are each island's own while it trains"
    if isinstance(rule, LoraRule) and (rule.ranks is not None or rule.shrinks):
        return f"{type(rule).__name__} gives them adapters of several ranks"
    return None


def check_turns(turns: Turns, client_state: ClientState, reason: str | None) -> None:
    """Raise ConfigError where islands can't take turns (reason) but are to, or are to keep something on disk."""
    require(turns != "on" or reason is None, "turns", turns, f"auto or off, as {reason}", "leave it out")
    reason = "turns is off" if turns == "off" else reason
    apart = client_state == "memory" or reason is None
    require(apart, "client_state", client_state, f"memory, as {reason}", "leave it out")


def take_turns(turns: Turns, client_state: ClientState, islands: int, reason: str | None) -> bool:
    """Whether so many islands do: by themselves where a model each begins to cost, since their checkpoints differ."""
    wanted = turns == "on" or (turns == "auto" and (islands > FEW or client_state == "disk"))
    return wanted and reason is None
