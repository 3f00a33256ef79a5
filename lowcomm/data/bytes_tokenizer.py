"""One token per byte of UTF-8."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lowcomm.data.tokenizer import CHATML, Tokenizer, TokenizerSpec, save_backend

END_OF_TEXT = 256
END_OF_TEXT_TOKEN = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Bytes(TokenizerSpec):
    """Bytes as tokens: id = byte value, 256 = end of text; 260 ids, the last three unused."""

    def load(self, training_text: Callable[[], Iterator[bytes]], cache_dir: Path) -> Tokenizer:
        return BytesTokenizer()


class BytesTokenizer(Tokenizer):
    """The saved form gives the same ids, but for text that spells the end-of-text token."""

    vocab_size = 260  # a multiple of 4: odd row counts are slow in matrix products
    key = None
    end_of_text_id = END_OF_TEXT
    chat_template = CHATML
    special_tokens = MappingProxyType({"eos_token": END_OF_TEXT_TOKEN})
    special_ids = MappingProxyType({END_OF_TEXT_TOKEN: END_OF_TEXT})

    def encode(self, documents: Sequence[bytes]) -> Iterator[np.ndarray]:
        """uint16 arrays."""
        for text in documents:
            ids = np.empty(len(text) + 1, dtype=np.uint16)
            ids[:-1] = np.frombuffer(text, dtype=np.uint8)
            ids[-1] = END_OF_TEXT
            yield ids

    def locate(self, text: str, special: bool) -> tuple[np.ndarray, np.ndarray]:
        parts = re.split(f"({re.escape(END_OF_TEXT_TOKEN)})", text) if special else [text]
        ids: list[int] = []
        begins: list[int] = []
        at = 0
        for number, part in enumerate(parts):
            if number % 2:  # what the pattern matched
                ids, begins = [*ids, END_OF_TEXT], [*begins, at]
            else:
                ids += part.encode()
                begins += [at + i for i, character in enumerate(part) for _ in character.encode()]
            at += len(part)
        return np.array(ids, dtype=np.int64), np.array(begins, dtype=np.int64)

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < END_OF_TEXT).astype(np.int64)

    def save(self, directory: Path) -> None:
        """A byte-level BPE without merges, whose ids are the byte values."""
        from tokenizers import AddedToken, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        vocabulary = {character: byte for byte, character in enumerate(byte_characters())}
        backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        backend.add_special_tokens([AddedToken(END_OF_TEXT_TOKEN, special=True, normalized=False)])
        save_backend(backend, END_OF_TEXT_TOKEN, directory)


def byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte.

    Printable Latin-1 stands for itself; the other bytes, in order, get the code points from 256 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
