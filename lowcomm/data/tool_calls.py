"""Forms that chat templates want turns with calls of tools in."""

from __future__ import annotations

import json
from typing import Any

from lowcomm.data.answers import Turn


def forms_of(turns: list[Turn]) -> list[list[Turn]]:
    """The turns as templates want calls of tools, the likeliest first: some ask for content that is None, or for
    arguments as JSON text."""
    if not any("tool_calls" in turn for turn in turns):
        return [turns]
    none = [{**turn, "content": turn["content"] or None} for turn in turns]
    return [turns, none, [_with_json(turn) for turn in turns], [_with_json(turn) for turn in none]]


def _with_json(turn: Turn) -> Turn:
    if "tool_calls" not in turn:
        return turn
    calls: list[Any] = []
    for call in turn["tool_calls"]:
        function = call.get("function", call)
        text = {"arguments": json.dumps(function["arguments"], ensure_ascii=False)} if "arguments" in function else {}
        calls.append({**call, "function": {**function, **text}} if "function" in call else {**call, **text})
    return {**turn, "tool_calls": calls}
