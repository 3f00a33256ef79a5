"""How a row holds a conversation: a list of messages, or columns of an instruction and its answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from lowcomm.data.errors import bad
from lowcomm.data.source import Document, Message
from lowcomm.types import ConfigError

ROLES = ("system", "user", "assistant", "tool")
ASSISTANT = "assistant"
ALIASES = {"human": "user", "gpt": "assistant"}
"""Names of roles in ShareGPT's files."""


@dataclass(frozen=True, kw_only=True)
class ChatFormat(ABC):
    """Concrete classes are frozen dataclasses. Losses count the assistant's turns only."""

    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Columns that every row must have."""

    @abstractmethod
    def messages(self, row: Mapping[str, object], place: str) -> tuple[Message, ...]:
        """The turns of a row that has the columns; raises ConfigError for a row that is no conversation."""

    def check(self) -> None:
        """Raises ConfigError for a column without a name."""
        for column in self.columns():
            if not column:
                raise bad("source.chat", self, "columns with names", "name the columns of the files")


@dataclass(frozen=True, kw_only=True)
class Messages(ChatFormat):
    """A column with a list of {role, content}; roles are system, user, assistant and tool (human and gpt, too)."""

    column: str = "messages"
    """Column with the list."""
    role: str = "role"
    """Key of a message's role; "from" in ShareGPT's files."""
    content: str = "content"
    """Key of a message's text; "value" in ShareGPT's files."""

    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def messages(self, row: Mapping[str, object], place: str) -> tuple[Message, ...]:
        turns = row[self.column]
        if not isinstance(turns, list) or not turns:
            raise bad(
                "source.chat.column", self.column, "a list of messages in every row", f"{place} has none: drop it"
            )
        return answered(tuple(self._message(turn, i, place) for i, turn in enumerate(turns, start=1)), place)

    def _message(self, turn: object, number: int, place: str) -> Message:
        where = f"{place} message {number}"
        if not isinstance(turn, Mapping):
            raise _wrong(where, f"a {type(turn).__name__}", "an object with role and content")
        role = turn.get(self.role)
        known = ALIASES.get(role, role) if isinstance(role, str) else None
        if known not in ROLES:
            raise _wrong(where, f"of the role {role!r} (key {self.role!r})", f"one of {', '.join(ROLES)}")
        return Message(known, filled(turn.get(self.content), where, self.content))


@dataclass(frozen=True, kw_only=True)
class Instructions(ChatFormat):
    """Columns of one question and its answer, as Alpaca has them."""

    prompt: str = "instruction"
    """Column with the instruction."""
    input: str | None = None
    """Column with what the instruction is about, which may be empty in a row; None: there is no such column."""
    answer: str = "output"
    """Column with the answer."""

    def columns(self) -> tuple[str, ...]:
        return (self.prompt, self.answer, *([self.input] if self.input is not None else []))

    def messages(self, row: Mapping[str, object], place: str) -> tuple[Message, ...]:
        ask = filled(row[self.prompt], place, self.prompt)
        more = row[self.input] if self.input is not None else None
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
    """The messages, if one is the assistant's; raises ConfigError, as every target would be masked."""
    if not any(m.role == ASSISTANT for m in messages):
        raise _wrong(place, "a conversation without an answer", "at least one message of the assistant")
    return messages


def chat_document(
    file: str, place: str, messages: tuple[Message, ...], label: str, key: bytes | None = None
) -> Document:
    """Its text is what all turns say, with roles. key: what the split goes by; None: the text."""
    try:
        text = "\n".join(f"{m.role}: {m.content}" for m in messages).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _wrong(place, f"no UTF-8 text (position {error.start})", "Unicode text") from error
    return Document(file, sha256(text).digest() if key is None else key, text, messages, label, place)


def _wrong(where: str, found: str, legal: str) -> ConfigError:
    return ConfigError(f"data.source: {where} is {found}; legal: {legal}; fix: repair or drop the row")
