"""What every text source returns: documents with the file they come from and the key of their split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    """Empty where the turn only calls tools."""
    learnt: bool = True
    """Whether an answer counts in the loss; says nothing of other turns."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further keys that the chat template gets (tool_calls, name, reasoning_content), JSON-able."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text. `text` is valid UTF-8: bytes are kept so that the byte tokenizer copies nothing."""

    file: str
    """Path relative to the corpus root, with forward slashes: the unit of by-file sharding."""
    key: bytes
    """Documents with equal keys fall on the same side of the train/validation split."""
    text: bytes
    messages: tuple[Message, ...] = ()
    """The turns of a conversation, whose text is `text`; losses count the assistant's only. Empty: plain text."""
    label: str = ""
    """What partitions go by; empty: the top folder of `file`."""
    place: str = ""
    """Where it was read ("a.jsonl line 3"), for messages; empty: `file`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the conversation may call; the chat template gets them."""

    @property
    def group(self) -> str:
        """The label, or the top folder."""
        return self.label or self.file.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """All documents of a source in a fixed order; `validation` is None where the split is ours to make."""

    documents: list[Document]
    validation: list[Document] | None = None
    stats: dict[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Where text comes from. Concrete classes are frozen dataclasses, so that a command line can set them."""

    def check(self) -> None:  # noqa: B027  # nothing to check is a good default
        """Raises ConfigError for a field out of range; reads no text."""

    @abstractmethod
    def read(self, cache_dir: Path) -> Corpus:
        """Every document, in an order that depends on the text alone; raises ConfigError for bad input."""
