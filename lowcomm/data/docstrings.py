"""Instructions from installed packages: the docstring of a function is the question, its source the answer.

Natural clients, offline: one package each. The answer is the function as it stands in the file, without the docstring.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from lowcomm.data.chat import chat_document
from lowcomm.data.errors import bad
from lowcomm.data.packages import PackageSource, held_out_files, package_root
from lowcomm.data.python_corpus import read_tree
from lowcomm.data.source import Corpus, Document, Message
from lowcomm.data.split import fraction_of

COUNTS = ("files", "files_skipped_undecodable", "files_skipped_unparsable", "files_duplicate", "functions_duplicate")


@dataclass(frozen=True, kw_only=True)
class Docstrings(PackageSource):
    """(docstring, function) pairs."""

    max_rows_each: int | None = 400
    """About so many pairs of each package, at most a tenth of them from one file; None: all of them."""
    max_chars: int = 600
    """Number of characters that question and answer have together at most; longer functions are left out."""
    first_paragraph: bool = True
    """The question is the docstring's first paragraph; otherwise all of it."""

    def check(self) -> None:
        super().check()
        if self.max_chars < 20:
            raise bad("source.max_chars", self.max_chars, "20 characters or more", "600 suits 256 tokens")

        if self.max_rows_each is not None and self.max_rows_each < 10:
            raise bad("source.max_rows_each", self.max_rows_each, "None or 10 and more", "use 400")

    def read(self, cache_dir: Path) -> Corpus:
        """Functions in the order of package, path and line; equal pairs once; whole files are held out."""
        train: list[Document] = []
        held: list[Document] = []
        stats: dict[str, int | float | str] = dict.fromkeys(COUNTS, 0)
        seen: set[bytes] = set()
        for name in self.names:
            own = self._package(name, stats, seen)
            if len({d.key for d in own}) < 2:
                fix = "raise source.max_chars or source.max_rows_each, or name another"
                raise bad("source.names", name, "packages with documented functions in two files", fix)
            chosen = held_out_files(own, self.held_out)
            held += [d for d in own if d.key in chosen]
            train += [d for d in own if d.key not in chosen]
        return Corpus(documents=train, validation=held, stats=stats)

    def _package(self, name: str, stats: dict[str, Any], seen: set[bytes]) -> list[Document]:
        corpus = read_tree(package_root(name), None)
        stats["files_skipped_undecodable"] += corpus.stats["files_skipped_undecodable"]
        own: list[Document] = []
        most = None if self.max_rows_each is None else self.max_rows_each // 10
        for file in sorted(corpus.documents, key=lambda d: fraction_of(d.key, "rows")):
            if self.max_rows_each is not None and len(own) >= self.max_rows_each:
                break
            stats["files"] += 1
            try:
                found = (self._document(name, file.file, pair) for pair in functions(file.text.decode()))
                documents = list(islice((d for d in found if d is not None), most))
            except (SyntaxError, ValueError, RecursionError):  # templates and sources for other versions
                stats["files_skipped_unparsable"] += 1
                continue
            for document in documents:
                digest = sha256(document.text).digest()
                stats["functions_duplicate"] += digest in seen
                own += [] if digest in seen else [document]
                seen.add(digest)
        return sorted(own, key=lambda d: d.key)

    def _document(self, package: str, file: str, pair: tuple[str, str, int]) -> Document | None:
        ask, answer, line = pair
        ask = ask.split("\n\n")[0] if self.first_paragraph else ask
        if len(ask) + len(answer) > self.max_chars:
            return None
        messages = (Message("user", ask), Message("assistant", answer))
        path = f"{package}/{file}"
        return chat_document(path, f"{path} line {line}", messages, package, path.encode())


def functions(source: str) -> Iterator[tuple[str, str, int]]:
    """(docstring, source without it, line) of each documented function, methods included; raises SyntaxError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's invalid escapes
        tree = ast.parse(source)
    lines = source.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        doc, text = node.body[0], ast.get_docstring(node, clean=False)
        if text is None or not text.strip() or doc.end_lineno is None or node.end_lineno is None:
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        own_lines = doc.lineno > node.lineno and node.body[1].lineno > doc.end_lineno
        if own_lines and lines[doc.lineno - 1][: doc.col_offset].strip() == "":
            head, rest = lines[first - 1 : doc.lineno - 1], lines[doc.end_lineno : node.end_lineno]
            body = "\n".join(rest).lstrip("\n")
            yield inspect.cleandoc(text), textwrap.dedent("\n".join([*head, body])).strip("\n"), first
