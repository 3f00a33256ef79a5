"""How a row holds a conversation: a list of messages, a prompt and its completion, or columns of an instruction."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, cast

from lowcomm.data.beside import BESIDE
from lowcomm.data.errors import bad
from lowcomm.data.source import Document, Message
from lowcomm.types import ConfigError

ROLES = ("system", "user", "assistant", "tool")
ASSISTANT = "assistant"
ALIASES = {"human": "user", "gpt": "assistant"}
"""Names of roles in ShareGPT's files."""
TOOLS = "tools"
"""Column of the tools that a conversation may call, where a row has any."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat(ABC):
    """Concrete classes are frozen dataclasses. Losses count the assistant's turns only.

    A row's `system` text is its first turn, whichever the format; a filled `history` or `functions`, or a `weight`
    other than 1, is refused.
    """

    ignore: tuple[str, ...] = ()
    """Keys of messages (an id, a time) that mean nothing to the model and are left out, and so of the columns system,
    history, functions and weight; others must be rendered."""

    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns that every row must have."""

    def optional_columns(self) -> tuple[str, ...]:
        """Columns that are read where a row has them."""
        return tuple(name for name in BESIDE if name not in (*self.ignore, *self.columns()))

    @abstractmethod
    def messages(self, row: Mapping[str, object], place: str) -> tuple[Message, ...]:
        """The turns of a row that has the columns; raises ConfigError for a row that is no conversation."""

    def check(self) -> None:
        """Raises ConfigError for a column without a name."""
        for column in self.columns():
            if not column:
                raise bad("source.chat", self, "columns with names", "name the columns of the files")


@dataclass(frozen=True, kw_only=True)
class Turns(ChatFormat):
    """Shared by the formats whose columns hold lists of messages; all keys of a message reach the chat template.

    An answer whose `weight` is 0 is read and not learnt. `tools` of a row (a list of JSON schemas) go to the template.
    """

    role: str = "role"
    """Key of a message's role; "from" in ShareGPT's files."""
    content: str = "content"
    """Key of a message's text; "value" in ShareGPT's files."""

    def optional_columns(self) -> tuple[str, ...]:
        return (TOOLS, *super().optional_columns())

    def turns(self, value: object, column: str, place: str) -> tuple[Message, ...]:
        """Messages of a list; raises ConfigError."""
        if not isinstance(value, list) or not value:
            raise bad("source.chat.column", column, "a list of messages in every row", f"{place} has none: drop it")
        return tuple(self._message(turn, f"{place} message {i}") for i, turn in enumerate(value, start=1))

    def _message(self, turn: object, where: str) -> Message:
        if not isinstance(turn, Mapping):
            raise _wrong(where, f"a {type(turn).__name__}", "an object with role and content")
        role = turn.get(self.role)
        known = ALIASES.get(role, role) if isinstance(role, str) else None
        if known not in ROLES:
            raise _wrong(where, f"of the role {role!r} (key {self.role!r})", f"one of {', '.join(ROLES)}")
        left = {self.role, self.content, "weight", *self.ignore}
        more = {str(k): v for k, v in turn.items() if k not in left and v not in (None, "", [], {})}
        if "tool_calls" in more:
            more["tool_calls"] = [_call(call, where) for call in _listed(more["tool_calls"], where)]
        content = _joined(turn.get(self.content), where)
        silent = known == ASSISTANT and content in (None, "") and bool(more)
        text = "" if silent else filled(content, where, self.content)
        return Message(known, text, _is_learnt(turn.get("weight"), where), more)


@dataclass(frozen=True, kw_only=True)
class Messages(Turns):
    """A column with a list of {role, content}; roles are system, user, assistant and tool (human and gpt, too)."""

    column: str = "messages"
    """Column with the list."""

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def messages(self, row: Mapping[str, object], place: str) -> tuple[Message, ...]:
        return answered(self.turns(row[self.column], self.column, place), place)


@dataclass(frozen=True, kw_only=True)
class PromptCompletion(Turns):
    """Columns of a prompt and its completion, each a text or a list of messages; only the completion is learnt.

    Texts become a turn of the user and one of the assistant.
    """

    prompt: str = "prompt"
    """Column with what comes before."""
    completion: str = "completion"
    """Column with what is learnt."""

    def columns(self) -> tuple[str, ...]:
        return (self.prompt, self.completion)

    def messages(self, row: Mapping[str, object], place: str) -> tuple[Message, ...]:
        before = self._turns_of(row[self.prompt], self.prompt, "user", place)
        after = self._turns_of(row[self.completion], self.completion, ASSISTANT, place)
        return (*(replace(m, learnt=False) for m in before), *answered(after, f"the completion of {place}"))

    def _turns_of(self, value: object, column: str, role: str, place: str) -> tuple[Message, ...]:
        if isinstance(value, list):
            return self.turns(value, column, f"{place} {column}")
        return (Message(role, filled(value, place, column)),)


@dataclass(frozen=True, kw_only=True)
class Instructions(ChatFormat):
    """Columns of one question and its answer, as Alpaca has them."""

    prompt: str = "instruction"
    """Column with the instruction."""
    input: str | None = "input"
    """Column with what the instruction is about, which may be empty in a row; None: there is no such column, or it is
    to be left out. "input" may be missing."""
    answer: str = "output"
    """Column with the answer."""

    def columns(self) -> tuple[str, ...]:
        named = [self.input] if self.input not in (None, "input") else []
        return (self.prompt, self.answer, *named)

    def optional_columns(self) -> tuple[str, ...]:
        return (*(("input",) if self.input == "input" else ()), *super().optional_columns())

    def messages(self, row: Mapping[str, object], place: str) -> tuple[Message, ...]:
        ask = filled(row[self.prompt], place, self.prompt)
        more = row.get(self.input) if self.input is not None else None
        if more not in (None, ""):
            ask += "\n\n" + filled(more, place, str(self.input))
        return Message("user", ask), Message(ASSISTANT, filled(row[self.answer], place, self.answer))


def filled(value: object, where: str, name: str) -> str:
    """Text that is not empty; raises ConfigError."""
    if not isinstance(value, str) or not value.strip():
        found = "nothing" if value is None or value == "" else repr(value)[:40]
        raise _wrong(where, f"without content: {name!r} holds {found}", "text that is not empty")
    return value


def answered(messages: tuple[Message, ...], place: str) -> tuple[Message, ...]:
    """The messages, if one is an answer that is learnt; raises ConfigError, as every target would be masked."""
    if not any(m.role == ASSISTANT for m in messages):
        raise _wrong(place, "a conversation without an answer", "at least one message of the assistant")
    if not any(m.role == ASSISTANT and m.learnt for m in messages):
        raise _wrong(place, "a conversation whose answers all have weight 0", "one answer that is learnt")
    return messages


def tools_of(row: Mapping[str, object], place: str) -> tuple[Mapping[str, Any], ...]:
    """The row's tools, which may be stored as JSON text; raises ConfigError unless they are a list of objects."""
    value = _from_json(row.get(TOOLS))
    if value in (None, "", []):
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise _wrong(place, f"with {TOOLS} that are {str(value)[:40]!r}", "a list of objects, JSON schemas of tools")
    return tuple(cast("list[Mapping[str, Any]]", value))


def chat_document(
    file: str,
    place: str,
    messages: tuple[Message, ...],
    label: str,
    key: bytes | None = None,
    tools: tuple[Mapping[str, Any], ...] = (),
) -> Document:
    """Its text is what all turns say, with roles and further keys. key: what the split goes by; None: the text."""
    lines = [f"{m.role}: {m.content}{_calls_of(m)}" for m in messages]
    if tools:
        lines.insert(0, _as_json(list(tools)))
    try:
        text = "\n".join(lines).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _wrong(place, f"no UTF-8 text (position {error.start})", "Unicode text") from error
    return Document(file, sha256(text).digest() if key is None else key, text, messages, label, place, tools)


def _calls_of(message: Message) -> str:
    """What sets rows with equal words apart: other calls, another answer that is learnt."""
    unlearnt = " (weight 0)" if message.role == ASSISTANT and not message.learnt else ""
    return unlearnt + (f" {_as_json(message.more)}" if message.more else "")


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _is_learnt(weight: object, where: str) -> bool:
    if weight is None or weight == 1:
        return True
    if weight == 0:
        return False
    raise _wrong(where, f"of weight {weight!r}", "weight 1 (learnt) or 0 (read only)")


def _joined(content: object, where: str) -> object:
    """A list of text parts, as some APIs write a message, as one text."""
    if not isinstance(content, list) or not content or not all(isinstance(part, Mapping) for part in content):
        return content
    parts = cast("Sequence[Mapping[str, object]]", content)
    other = next((part for part in parts if not isinstance(part.get("text"), str)), None)
    if other is not None:
        raise _wrong(
            where, f"with a part of type {other.get('type')!r}", "parts of text only, as no image is trained on"
        )
    return "".join(str(part["text"]) for part in parts)


def _listed(calls: object, where: str) -> list[Any]:
    calls = _from_json(calls)
    if not isinstance(calls, list):
        raise _wrong(where, f"with tool_calls of type {type(calls).__name__}", "a list of calls")
    return calls


def _call(call: object, where: str) -> dict[str, Any]:
    """A call with its arguments as an object: templates would quote arguments in JSON text once more."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _wrong(where, f"with the tool call {str(call)[:40]!r}", "an object with function.name and arguments")
    plain = {**function, "arguments": _from_json(function["arguments"])} if "arguments" in function else function
    return {**call, "function": plain} if "function" in call else dict(plain)


def _from_json(value: object) -> object:
    """Objects and lists that are stored as JSON text; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict | list) else value


def _wrong(where: str, found: str, legal: str) -> ConfigError:
    return ConfigError(f"data.source: {where} is {found}; legal: {legal}; fix: repair or drop the row")
