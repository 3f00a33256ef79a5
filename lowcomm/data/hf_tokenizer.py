"""A tokenizer from a local transformers directory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowcomm.data.errors import bad, need
from lowcomm.data.tokenizer import BackendTokenizer, Tokenizer, TokenizerSpec


@dataclass(frozen=True, kw_only=True)
class HFTokenizer(TokenizerSpec):
    """Any local transformers tokenizer directory; nothing is downloaded and no code of it is run."""

    path: Path
    """Directory with tokenizer.json and tokenizer_config.json."""
    pad_with_end_of_text: bool = False
    """Give a tokenizer without pad token its end-of-text token as pad token."""

    def check(self) -> None:
        if not self.path.expanduser().is_dir():
            raise bad(
                "tokenizer.path",
                str(self.path),
                "a local directory with a transformers tokenizer",
                "correct the path, or save one there with tokenizer.save_pretrained",
            )

    def load(self, training_text: Callable[[], Iterator[bytes]], cache_dir: Path) -> Tokenizer:
        """Raises ConfigError if the directory is missing, not a tokenizer, or lacks an end or pad token."""
        self.check()
        tokenizer = self._loaded()
        if tokenizer.eos_token_id is None:
            raise bad(
                "tokenizer.path",
                str(self.path),
                "a tokenizer with an end-of-text token (eos_token)",
                "set tokenizer.eos_token and save it again",
            )
        if tokenizer.pad_token_id is None:
            if not self.pad_with_end_of_text:
                raise bad(
                    "tokenizer.path",
                    str(self.path),
                    "a tokenizer with a pad token",
                    "set tokenizer.pad_with_end_of_text to true, or save the tokenizer with a pad_token",
                )
            tokenizer.pad_token = tokenizer.eos_token
        from tokenizers import Tokenizer as Backend

        # A copy: our encoding settings must not reach the tokenizer that is saved with the model.
        backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        return BackendTokenizer(
            backend,
            vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values()),
            end_of_text=tokenizer.eos_token_id,
            special=frozenset(tokenizer.all_special_ids),
            save=tokenizer.save_pretrained,
            chat_template=_one_template(tokenizer.chat_template),
            special_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        )

    def _loaded(self) -> Any:
        transformers = need("transformers", "data")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(self.path.expanduser()), local_files_only=True, trust_remote_code=False
            )
            tokenizer.backend_tokenizer.to_str()
        except Exception as error:  # transformers raises many kinds for a broken directory
            raise bad(
                "tokenizer.path",
                str(self.path),
                "a transformers tokenizer with tokenizer.json",
                f"save it there with tokenizer.save_pretrained ({type(error).__name__}: {error})",
            ) from error
        return tokenizer


def _one_template(templates: object) -> str | None:
    """Of several, the default one."""
    return (
        templates if isinstance(templates, str) else templates.get("default") if isinstance(templates, dict) else None
    )
