"""Finds the answers in a rendered conversation: which characters a model has to learn.

Two ways, the exact one first:

- **Prefixes.** The text of turns 0..i-1 with the generation prompt begins the text of turns 0..i, which begins the
  whole. What lies between is answer i, up to the mark that ends the turn: exactly what a model must write after what it
  is shown.
- **Slots.** A template that renders earlier turns otherwise once later ones follow (it drops their reasoning) is
  rendered once more, with a mark in the place of each turn's text. What stands around the marks is the template's own
  text: an answer begins where the generation prompt ends and ends with the mark that ends the turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Turn = dict[str, Any]
"""What a chat template gets of one message."""
Render = Callable[[Sequence[Turn], bool], str]
"""(turns, with the generation prompt) to text."""
Span = tuple[int, int]
"""Begin and end in characters."""

_OPEN, _CLOSE = "\ufdd1", "\ufdd2"
"""Unicode noncharacters around a slot's number; sources refuse them in texts."""
_SLOT = re.compile(f"{_OPEN}(.){_CLOSE}", re.DOTALL)
_THOUGHT = "</think>"
"""Ends the reasoning in front of an answer; templates treat what is before it in their own way."""
_TAG = re.compile(r"<[^<>\s]*>")
"""A special token, or what looks like one."""
_EDGE = re.compile(f"{_TAG.pattern}|\n")


@dataclass(frozen=True, kw_only=True)
class Slotted:
    """A turn with a slot in the place of its text, or, without one, of the name of the last tool that it calls."""

    turn: Turn
    piece: str | None
    """What the slot stands for; None: the turn has neither."""


def slotted(turns: Sequence[Turn]) -> list[Slotted]:
    """All turns; the slot of turn i has the number i. Reasoning in front of an answer stays as it is."""
    return [_slotted(turn, f"{_OPEN}{chr(0xF0000 + i)}{_CLOSE}") for i, turn in enumerate(turns)]


def _slotted(turn: Turn, slot: str) -> Slotted:
    content = turn["content"]
    if content:
        thought, _, answer = content.rpartition(_THOUGHT)
        reasons = thought and answer.strip() and turn["role"] == "assistant"
        begin = len(content) - len(answer) if reasons else 0
        begin += len(content[begin:]) - len(content[begin:].lstrip())
        end = len(content.rstrip())
        return Slotted(turn={**turn, "content": content[:begin] + slot + content[end:]}, piece=content[begin:end])
    if turn.get("tool_calls"):
        *others, call = turn["tool_calls"]
        name = call["function"]["name"] if "function" in call else call["name"]
        named = {"function": {**call["function"], "name": slot}} if "function" in call else {"name": slot}
        return Slotted(turn={**turn, "tool_calls": [*others, {**call, **named}]}, piece=name)
    return Slotted(turn=turn, piece=None)


def lost_turn(slots: Sequence[Slotted], skeleton: str) -> int | None:
    """The first turn whose slot is not in the rendering with slots; None: all are."""
    there = {ord(number) - 0xF0000 for number in _SLOT.findall(skeleton)}
    return next((i for i, slot in enumerate(slots) if slot.piece is not None and i not in there), None)


def spelled(piece: str, text: str) -> bool:
    """Whether the text has the piece, as it is or as a JSON string has it."""
    return any(form in text for form in _forms(piece))


def thought_of(turn: Mapping[str, Any]) -> str:
    """The reasoning that the content of a turn begins with, without its tags; empty: none."""
    thought, found, _ = str(turn["content"] or "").rpartition(_THOUGHT)
    return thought.rpartition("<think>")[2].strip() if found else ""


def by_prefixes(render: Render, turns: Sequence[Turn], learnt: Sequence[int], whole: str) -> list[Span] | None:
    """Answers of the turns `learnt`; None where the prefixes do not fit."""
    answers: list[Span] = []
    for i in learnt:
        prompt = render(turns[:i], True)
        upto = render(turns[: i + 1], False) if i < len(turns) - 1 else whole
        if not (upto.startswith(prompt) and whole.startswith(upto)):
            return None
        answers.append((len(prompt), len(prompt) + len(upto[len(prompt) :].rstrip())))
    return answers


def by_slots(
    render: Render, slots: Sequence[Slotted], learnt: Sequence[int], skeleton: str, whole: str
) -> list[Span] | None:
    """Answers of the turns `learnt`; None where the template's own text around a turn can't be told."""
    places = _places(slots, skeleton, whole)
    if places is None or any(i not in places for i in learnt):
        return None
    literals = _SLOT.split(skeleton)
    order = [ord(number) - 0xF0000 for number in literals[1::2]]
    turns = [slot.turn for slot in slots]
    answers: list[Span] = []
    for i in learnt:
        at = order.index(i)
        before, after = literals[2 * at], literals[2 * at + 2]
        prompt = _SLOT.split(render(turns[:i], True))[-1]
        ended = _SLOT.split(render(turns[: i + 1], False))
        if len(ended) < 2 or ord(ended[-2]) - 0xF0000 != i:
            return None
        ending = ended[-1].rstrip()
        opens, closes = _opening(prompt, before), _closing(ending, after)
        if (prompt and not opens) or (ending and not closes):
            return None
        begin, end = places[i]
        answers.append((begin - len(before) + opens, end + closes))
    return answers


def _places(slots: Sequence[Slotted], skeleton: str, whole: str) -> dict[int, Span] | None:
    """Where in `whole` each slot's piece stands; None unless it is the skeleton with all pieces put in, each once."""
    literals = _SLOT.split(skeleton)
    places: dict[int, Span] = {}
    at = len(literals[0])
    if not whole.startswith(literals[0]):
        return None
    for number, after in zip(literals[1::2], literals[2::2], strict=True):
        i = ord(number) - 0xF0000
        piece = slots[i].piece
        fitting = [f for f in _forms(piece or "") if whole.startswith(f + after, at)]
        if piece is None or i in places or not fitting:
            return None
        places[i] = (at, at + len(fitting[0]))
        at += len(fitting[0]) + len(after)
    return places if at == len(whole) else None


def _forms(piece: str) -> list[str]:
    return list(dict.fromkeys([piece, json.dumps(piece, ensure_ascii=False)[1:-1], json.dumps(piece)[1:-1]]))


def _opening(prompt: str, before: str) -> int:
    """Characters of `before` that the generation prompt has written, where an answer begins; 0: it can't be told."""
    if count := _shared(prompt, before):
        return count
    for tag in _TAG.finditer(prompt):  # the turn before ends otherwise than it does in front of a generation prompt
        rest = prompt[tag.start() :]
        if (at := before.rfind(rest)) >= 0:
            return at + len(rest)
    return 0


def _closing(ending: str, after: str) -> int:
    """Characters of `after` that end the turn in front of it; 0: none do, or it can't be told."""
    count = _shared(ending, after)
    if ending and not count and (tag := _TAG.match(after)):  # an earlier turn ends with another mark than the last one
        count = tag.end()
    return len(after[:count].rstrip())


def _shared(first: str, second: str) -> int:
    """Characters of `second` that both begin with, up to the end of a tag or a line unless one of them ends there."""
    differing = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    count = next(differing, min(len(first), len(second)))
    if count == min(len(first), len(second)):
        return count
    return max((edge.end() for edge in _EDGE.finditer(second) if edge.end() <= count), default=0)


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
