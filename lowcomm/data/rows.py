"""Shared by the sources whose rows are documents."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256

from lowcomm.data.chat import ChatFormat, chat_document
from lowcomm.data.errors import bad
from lowcomm.data.source import Corpus, Document, Source
from lowcomm.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class RowSource(Source):
    """Files whose rows are texts or conversations."""

    column: str = "text"
    """Column with the text; not used with `chat`."""
    chat: ChatFormat | None = None
    """How a row holds a conversation (Messages or Instructions); None: rows are plain texts."""
    label_column: str | None = None
    """Column that partitions go by (a site, a topic); None: the top folder of the file."""

    def check(self) -> None:
        if self.chat is not None:
            self.chat.check()

    def columns(self) -> list[str]:
        """All columns that are read, each once."""
        own = [self.column] if self.chat is None else list(self.chat.columns())
        return list(dict.fromkeys([*own, *([self.label_column] if self.label_column is not None else [])]))

    def document(self, file: str, place: str, row: Mapping[str, object]) -> Document | None:
        """None for an empty text; raises ConfigError for a row without a column, and for one that is not text."""
        for column in self.columns():
            if column not in row:
                raise missing_column(column, place, row.keys())
        label = "" if self.label_column is None else _label(row[self.label_column], place, self.label_column)
        if self.chat is not None:
            return chat_document(file, place, self.chat.messages(row, place), label)
        return row_document(file, place, row[self.column], label)


def row_document(file: str, place: str, value: object, label: str = "") -> Document | None:
    """A row's text as a document, None if empty; the split goes by the text, since one file has many rows.

    `place` says where the row is ("a.jsonl line 3"). Raises ConfigError if the value is not text.
    """
    if not isinstance(value, str):
        raise bad("source.column", value, "text in every row", f"{place} is not a string: fix or drop the row")
    try:
        text = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"data.source: {place} is not UTF-8 text (position {error.start}); "
            "legal: Unicode text; fix: repair or drop the row"
        ) from error
    return Document(file, sha256(text).digest(), text, (), label, place) if text else None


def _label(value: object, place: str, column: str) -> str:
    if not isinstance(value, str | int | float) or value == "":
        raise bad("source.label_column", column, "a text or a number in every row", f"{place} has {value!r}: add it")
    return str(value)


def missing_column(column: str, place: str, columns: Collection[str]) -> ConfigError:
    """The error of a column that is not there, with those that are."""
    names = ", ".join(map(repr, sorted(columns))) or "none"
    return bad("source.column", column, f"a column of {place} ({names})", "name one of these columns")


def row_corpus(documents: list[Document], files: int, glob: str) -> Corpus:
    """Raises ConfigError if no row has text."""
    if not documents:
        raise bad("source.glob", glob, "files with rows of text", "all the rows are empty: add text")
    stats: dict[str, int | float | str] = {
        "files": files,
        "files_skipped_undecodable": 0,
        "files_duplicate": 0,
    }
    return Corpus(documents=documents, stats=stats)
