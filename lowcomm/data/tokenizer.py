"""What a tokenizer must do, a chat template for those without one, and those built on the `tokenizers` library."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML whose turns end with the tokenizer's own end-of-text token, which is what stops generation."""


if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_CHUNK_BYTES = 4_000_000
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Tokenizer(ABC):
    """Text to ids. `key` names text-to-ids exactly (for caches); None: encoding is faster than a cache."""

    vocab_size: int
    key: str | None
    end_of_text_id: int
    chat_template: str | None
    """Jinja template of conversations; None: it has none."""
    special_tokens: Mapping[str, str] = MappingProxyType({})
    """Names that a chat template uses for special tokens ("eos_token"), and what they are."""
    special_ids: Mapping[str, int] = MappingProxyType({})
    """Tokens that only a chat template may spell, with their ids."""

    @abstractmethod
    def encode(self, documents: Sequence[bytes]) -> Iterator[np.ndarray]:
        """One integer array [tokens] per UTF-8 document, with one end-of-text token after it."""

    @abstractmethod
    def locate(self, text: str, special: bool) -> tuple[np.ndarray, np.ndarray]:
        """int64 (ids, begins) [tokens] of a text, nothing added; begins: where each token begins, in characters.

        special: text that spells a special token is that token; otherwise it is plain text.
        """

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """int64 [vocab_size]: bytes of text that each token stands for, 0 for special ones."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what AutoTokenizer.from_pretrained(directory) loads."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec(ABC):
    """Settings of a tokenizer. Concrete classes are frozen dataclasses, so that a command line can set them."""

    def check(self) -> None:  # noqa: B027  # nothing to check is a good default
        """Raises ConfigError for a field out of range; loads nothing."""

    @abstractmethod
    def load(self, training_text: Callable[[], Iterator[bytes]], cache_dir: Path) -> Tokenizer:
        """`training_text()` gives the training documents (UTF-8), for the tokenizers that are trained."""


class BackendTokenizer(Tokenizer):
    """Wraps a `tokenizers.Tokenizer`.

    Text that spells a special token is encoded as plain text here: a corpus must not be able to end a document.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        vocab_size: int,
        end_of_text: int,
        special: frozenset[int],
        save: Callable[[Path], None],
        chat_template: str | None,
        special_tokens: Mapping[str, str],
    ) -> None:
        self._backend = backend
        self.chat_template, self.special_tokens = chat_template, special_tokens
        added = backend.get_added_tokens_decoder().items()
        self.special_ids = {token.content: index for index, token in added if token.special}
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self.vocab_size = vocab_size
        self.key = sha256(f"{backend.to_str()}\0{end_of_text}".encode()).hexdigest()
        self.end_of_text_id = end_of_text
        self._special = special
        self._save = save

    def encode(self, documents: Sequence[bytes]) -> Iterator[np.ndarray]:
        """int32 arrays."""
        for chunk in _chunks(documents):
            texts = [text.decode("utf-8") for text in chunk]
            for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False):
                yield np.array([*encoding.ids, self.end_of_text_id], dtype=np.int32)

    def locate(self, text: str, special: bool) -> tuple[np.ndarray, np.ndarray]:
        self._backend.encode_special_tokens = not special
        encoding = self._backend.encode(text, add_special_tokens=False)
        self._backend.encode_special_tokens = True
        begins = [begin for begin, _ in encoding.offsets]
        return np.array(encoding.ids, dtype=np.int64), np.array(begins, dtype=np.int64)

    def token_bytes(self) -> np.ndarray:
        """Exact for byte-level and byte-fallback vocabularies; a normaliser that lowers case is not undone."""
        is_byte_level = '"ByteLevel"' in self._backend.to_str()
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            if index not in self._special:
                sizes[index] = _size(token, is_byte_level)
        return sizes

    def save(self, directory: Path) -> None:
        self._save(directory)


def _chunks(documents: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Groups of about 4 MB: enough for parallel encoding, little memory for the results."""
    chunk: list[bytes] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(token: str, is_byte_level: bool) -> int:
    """A byte-level vocabulary writes one character per byte; others write text with marks for spaces."""
    if is_byte_level:
        return len(token)
    if _BYTE_TOKEN.fullmatch(token):
        return 1
    return len(token.removeprefix("##").replace("▁", " ").encode("utf-8"))


def save_backend(backend: Backend, end_of_text: str, directory: Path) -> None:
    """Write a transformers tokenizer whose begin, end and padding token is `end_of_text`."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=end_of_text,
        eos_token=end_of_text,
        pad_token=end_of_text,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(directory)
