"""A byte-level BPE trained once on the training documents and cached."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.data import cache
from lowcomm.data.errors import bad
from lowcomm.data.tokenizer import CHATML, BackendTokenizer, Tokenizer, TokenizerSpec, save_backend

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

END_OF_TEXT = "<|endoftext|>"
_WORD_CHARACTERS = 256
_LONG_WORD = re.compile(
    "|".join(f"{kind}{{{_WORD_CHARACTERS + 1},}}" for kind in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"))
)
"""What the byte-level pre-tokenizer takes for one word, if it is longer than that."""


@dataclass(frozen=True, kw_only=True)
class TrainedBPE(TokenizerSpec):
    """Byte-level BPE trained by `tokenizers` on the training documents only; same text, same tokenizer.

    Merges are learnt within words. A run of more than 256 letters, digits, other characters or blanks (text without
    spaces) is learnt in pieces of 256: the time to learn grows with the square of a word's length.
    """

    vocab_size: int = 4096
    """Number of ids: 256 bytes, one end-of-text token, the rest merges; 257 to 1048576."""
    train_bytes: int = 20_000_000
    """At most about this many bytes of training text are read to learn the merges."""

    def check(self) -> None:
        if not 257 <= self.vocab_size <= 2**20:
            raise bad("tokenizer.vocab_size", self.vocab_size, "257 to 1048576", "use 4096")
        if self.train_bytes < 1:
            raise bad("tokenizer.train_bytes", self.train_bytes, "1 byte or more", "use 20000000")

    def load(self, training_text: Callable[[], Iterator[bytes]], cache_dir: Path) -> Tokenizer:
        """Trains on the first run; later runs and other processes read the cache."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import __version__

        texts = list(_head(training_text(), self.train_bytes))
        digest = sha256(f"{__version__} {self.vocab_size}".encode())
        for text in texts:
            digest.update(sha256(text).digest())
        path = cache_dir / "bpe" / f"{digest.hexdigest()}.json"
        stored = cache.read(path)
        if stored is None:
            stored = self._train(texts).to_str().encode()
            cache.write(path, stored)
        # Always the parsed form, so that the first run and the cached one cannot differ.
        backend = Backend.from_str(stored.decode())
        end_of_text = backend.get_vocab(with_added_tokens=True)[END_OF_TEXT]
        return BackendTokenizer(
            Backend.from_str(stored.decode()),
            vocab_size=self.vocab_size,
            end_of_text=end_of_text,
            special=frozenset({end_of_text}),
            save=partial(save_backend, backend, END_OF_TEXT),
            chat_template=CHATML,
            special_tokens={"eos_token": END_OF_TEXT},
        )

    def _train(self, texts: list[bytes]) -> Backend:
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, trainers

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
        backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(
            (piece for text in texts for piece in bounded(text.decode("utf-8"))), trainer=trainer
        )
        return backend


def _head(texts: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    """Documents until the limit is passed; the last one whole."""
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= limit_bytes:
            return


def bounded(text: str) -> Iterator[str]:
    """The text, cut in the middle of words that are too long to learn from; text without any is one piece."""
    at = 0
    for word in _LONG_WORD.finditer(text):
        for cut in range(word.start() + _WORD_CHARACTERS, word.end(), _WORD_CHARACTERS):
            yield text[at:cut]
            at = cut
    yield text[at:]
