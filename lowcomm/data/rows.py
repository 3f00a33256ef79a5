"""Shared by the sources whose rows are documents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256

from lowcomm.data.beside import with_beside
from lowcomm.data.chat import TOOLS, ChatFormat, chat_document, tools_of
from lowcomm.data.errors import bad
from lowcomm.data.files import Matched
from lowcomm.data.source import Corpus, Document, Source
from lowcomm.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class RowSource(Source):
    """Files whose rows are texts or conversations."""

    column: str = "text"
    """Column with the text; not used with `chat`."""
    chat: ChatFormat | None = None
    """How a row holds a conversation (Messages, PromptCompletion or Instructions); None: rows are plain texts."""
    label_column: str | None = None
    """Column that partitions go by (a site, a topic); None: the top folder of the file."""
    skip_bad_rows: bool = False
    """Leave out, and count, rows that cannot be used (no text, no JSON, no answer); otherwise they are an error."""

    def check(self) -> None:
        if self.chat is not None:
            self.chat.check()

    def columns(self) -> list[str]:
        """Columns that every row must have, each once."""
        own = [self.column] if self.chat is None else list(self.chat.columns())
        return list(dict.fromkeys([*own, *([self.label_column] if self.label_column is not None else [])]))

    def all_columns(self) -> list[str]:
        """Those, and the ones that are read where a row has them."""
        return list(dict.fromkeys([*self.columns(), *(self.chat.optional_columns() if self.chat is not None else ())]))

    def document(self, file: str, place: str, row: Mapping[str, object]) -> Document | None:
        """None for an empty text; raises ConfigError for a row without a column, and for one that is not text."""
        for column in self.columns():
            if column not in row:
                raise missing_column(column, place, row.keys())
        label = "" if self.label_column is None else _label(row[self.label_column], place, self.label_column)
        if self.chat is not None:
            read = self.chat.optional_columns()
            messages = with_beside(self.chat.messages(row, place), row, place, read)
            tools = tools_of(row, place) if TOOLS in read else ()
            return chat_document(file, place, messages, label, tools=tools)
        return row_document(file, place, row[self.column], label)


class Rows:
    """Collects the documents of a source's rows, without the bad ones where they are to be skipped."""

    def __init__(self, source: RowSource) -> None:
        self.documents: list[Document] = []
        self.skipped = 0
        self.first: str | None = None
        """What was wrong with the first row that was skipped."""
        self._source = source

    def add(self, make: Callable[[], Document | None]) -> None:
        """Keep what `make` returns, None aside; raises its ConfigError unless bad rows are skipped."""
        try:
            document = make()
        except ConfigError as error:
            if not self._source.skip_bad_rows:
                raise
            self.skipped += 1
            self.first = self.first or str(error)
            return
        if document is not None:
            self.documents.append(document)

    def corpus(self, found: Matched, glob: str) -> Corpus:
        """Raises ConfigError if no row has text."""
        if not self.documents:
            fix = f"all {self.skipped} rows were skipped, the first as {self.first}" if self.first else "add text"
            raise bad("source.glob", glob, "files with rows of text", fix)
        return Corpus(
            documents=self.documents,
            stats={
                "files": len(found.files),
                "files_skipped_undecodable": 0,
                "files_duplicate": 0,
                "links_left_out": found.links_left_out,
                "rows_skipped": self.skipped,
            },
        )


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
    return bad(
        "source.column", column, f"a column of {place} ({names})", "name one of these columns" + _chat_hint(columns)
    )


def _chat_hint(columns: Collection[str]) -> str:
    """What to write in the recipe for columns that look like conversations."""
    hints = {
        "messages": ("messages",),
        "conversations": ("conversations",),
        "prompt": ("prompt", "completion"),
        "instruction": ("instruction", "output"),
    }
    formats = {
        "messages": "chat=Messages()",
        "conversations": "chat=Messages(column='conversations', role='from', content='value')",
        "prompt": "chat=PromptCompletion()",
        "instruction": "chat=Instructions()",
    }
    fitting = [formats[name] for name, needed in hints.items() if set(needed) <= set(columns)]
    return f", or give the source {fitting[0]} in the recipe" if fitting else ""


def without_nulls(value: object) -> object:
    """Without the keys whose value is None: tables fill the keys that other rows have."""
    if isinstance(value, Mapping):
        return {key: without_nulls(own) for key, own in value.items() if own is not None}
    return [without_nulls(own) for own in value] if isinstance(value, list) else value


def filled_only(row: Mapping[str, object], chat: bool) -> dict[str, object]:
    """A table's row; of a conversation, without the keys that only other rows fill. Columns stay."""
    return {key: without_nulls(value) if chat else value for key, value in row.items()}
