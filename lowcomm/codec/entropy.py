"""Symbols to bits and back through `constriction`: asymmetric numeral systems or Huffman codes, with their table.

Duda, arXiv 1311.2540; Huffman 1952; Bamler, constriction, arXiv 2201.01741.

Layout: number of symbols that occur minus one (uint16), those symbols (uint16 each) and their frequencies (uint16 each,
scaled so that the largest is at most 65535), then 32-bit words. A single symbol that occurs needs no words. Everything
is little-endian. The table costs 4 B per symbol that occurs.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from lowcomm.types import ConfigError, PayloadError

Coder = Literal["ans", "huffman"]
MOST_SYMBOLS = 1 << 16


def require_constriction() -> Any:
    """The library. Raises ConfigError where it is missing."""
    try:
        import constriction
    except ImportError as error:
        raise ConfigError("constriction is missing. Fix: pip install 'lowcomm[codecs]'") from error
    return constriction


def encode_symbols(symbols: np.ndarray, coder: Coder) -> bytes:
    """Code `symbols` (integers from 0 to 65535, 1-D); `decode_symbols` must know how many there are."""
    if len(symbols) == 0:
        return b""
    frequencies = np.bincount(symbols)
    found = np.flatnonzero(frequencies)
    counts = frequencies[found]
    scale = max(1, -(-int(counts.max()) // 65535))
    table = np.maximum(counts // scale, 1).astype("<u2")
    head = np.array([len(found) - 1], dtype="<u2").tobytes() + found.astype("<u2").tobytes() + table.tobytes()
    if len(found) == 1:
        return head
    rank_of = np.zeros(len(frequencies), dtype=np.int32)
    rank_of[found] = np.arange(len(found), dtype=np.int32)
    return head + _words(rank_of[symbols], table, coder).astype("<u4").tobytes()


def decode_symbols(data: bytes, count: int, alphabet: int, coder: Coder) -> np.ndarray:
    """int64 [count], each below `alphabet`. Raises PayloadError for bytes that `encode_symbols` can't have made."""
    if count == 0:
        if data:
            raise PayloadError("an entropy-coded part of the payload should be empty")
        return np.zeros(0, dtype=np.int64)
    kinds = int.from_bytes(data[:2], "little") + 1
    head = 2 + 4 * kinds
    if len(data) < head or (len(data) - head) % 4:
        raise PayloadError("an entropy-coded part of the payload is cut off")
    found = np.frombuffer(data, "<u2", kinds, 2).astype(np.int64)
    table = np.frombuffer(data, "<u2", kinds, 2 + 2 * kinds)
    if (np.diff(found) <= 0).any() or found[-1] >= alphabet or (table == 0).any():
        raise PayloadError("an entropy code's table is out of order, out of range or has an empty entry")
    words = np.frombuffer(data, "<u4", offset=head).astype(np.uint32)
    if kinds == 1:
        if len(words):
            raise PayloadError("a single symbol needs no entropy-coded words")
        return np.full(count, found[0])
    return found[_ranks(words, count, table, coder)]


def _words(ranks: np.ndarray, table: np.ndarray, coder: Coder) -> np.ndarray:
    library = require_constriction()
    if coder == "ans":
        ans = library.stream.stack.AnsCoder()
        ans.encode_reverse(ranks, _model(library, table))
        return ans.get_compressed()
    tree = library.symbol.huffman.EncoderHuffmanTree(table.astype(np.float32))
    queue = library.symbol.QueueEncoder()
    for rank in ranks.tolist():
        queue.encode_symbol(rank, tree)
    return queue.get_compressed()[0]


def _ranks(words: np.ndarray, count: int, table: np.ndarray, coder: Coder) -> np.ndarray:
    library = require_constriction()
    try:
        if coder == "ans":
            ans = library.stream.stack.AnsCoder(words)
            ranks = ans.decode(_model(library, table), count)
            if not ans.is_empty():
                raise PayloadError("an entropy-coded part of the payload holds more than its symbols")
            return ranks
        tree = library.symbol.huffman.DecoderHuffmanTree(table.astype(np.float32))
        queue = library.symbol.QueueDecoder(words)
        return np.fromiter((queue.decode_symbol(tree) for _ in range(count)), np.int64, count)
    except (ValueError, AssertionError, IndexError) as error:
        raise PayloadError(f"an entropy-coded part of the payload can't be decoded ({type(error).__name__})") from error


def _model(library: Any, table: np.ndarray) -> Any:
    return library.stream.model.Categorical(table.astype(np.float64), perfect=False)
