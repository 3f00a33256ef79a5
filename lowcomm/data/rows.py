"""Shared by the sources whose rows are documents."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256

from lowcomm.data.errors import bad
from lowcomm.data.source import Corpus, Document
from lowcomm.types import ConfigError


def row_document(file: str, place: str, value: object) -> Document | None:
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
    return Document(file, sha256(text).digest(), text) if text else None


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
