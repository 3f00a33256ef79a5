"""Local JSON Lines files by glob: each line is an object that holds a text or a conversation."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lowcomm.data.files import matched, read_bytes
from lowcomm.data.rows import RowSource, row_corpus
from lowcomm.data.source import Corpus, Document
from lowcomm.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class JsonLines(RowSource):
    """One JSON object per line; the train/validation split goes by a hash of each row's text."""

    glob: str
    """Pattern of the files, for example 'dump/*.jsonl'."""

    def read(self, cache_dir: Path) -> Corpus:
        """Raises ConfigError with file and line number for a line that is not UTF-8 or not a JSON object."""
        documents: list[Document] = []
        files = matched(self.glob)
        for name, path in files:
            for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
                place = f"{path} line {number}"
                if line.strip() and (document := self._document(name, place, line)):
                    documents.append(document)
        return row_corpus(documents, len(files), self.glob)

    def _document(self, name: str, place: str, line: bytes) -> Document | None:
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"data.source: {place} is not UTF-8 (byte {error.start}); legal: UTF-8; fix: convert the file"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"data.source: {place} is not JSON ({error}); legal: one object per line; fix: repair the line"
            ) from error
        if not isinstance(row, dict):
            raise ConfigError(
                f"data.source: {place} is a {type(row).__name__}; legal: one JSON object per line; "
                "fix: wrap the value in an object"
            )
        return self.document(name, place, row)
