"""A transformers directory that always holds a whole model: the newest version of a run that somebody follows.

    DIR/config.json, tokenizer ...   the same for every version
    DIR/model.safetensors            one file, replaced by a rename: a reader has one version or the next, not a mixture
    DIR/version.json                 run, version, digest and tokens, written after it: for people, and loops that watch

The metadata of model.safetensors name the version, too ("lowcomm.version"): no reader sees them apart from the weights.
Weights are bf16: of a fully trained model exactly the published bits; adapters are merged in fp32 and rounded then.
Code, base weights and tokenizer are this machine's own: nothing of a store is executed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from lowcomm.config import RunConfig
from lowcomm.data import TrainedBPE, build_data
from lowcomm.data.tokenizer import CHATML
from lowcomm.model import is_quantized, is_tuned, unpacked_copy
from lowcomm.model.build import build_model
from lowcomm.private_files import make_directory
from lowcomm.run.export import in_dtype, save_model
from lowcomm.run.run_dir import write_json
from lowcomm.state.digest import digest_all
from lowcomm.store.patch_code import Bits, values_of
from lowcomm.store.run_file import RunFile
from lowcomm.store.subscriber import Version
from lowcomm.storerun.facts import parted
from lowcomm.storerun.plan import shares_data
from lowcomm.types import ConfigError, LowcommError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, VERSION, LOCK = "model.safetensors", "version.json", ".follow.lock"


@dataclass(frozen=True, kw_only=True)
class Base:
    """What this machine has of the model before any weights come."""

    model: nn.Module
    config: RunConfig
    vocab_size: int
    save_tokenizer: Callable[[Path], None]


def needs_text(config: RunConfig) -> bool:
    """Whether the tokenizer was trained on the run's text, so that it has to be read here as well."""
    return isinstance(config.data.tokenizer, TrainedBPE)


def base_of(config: RunConfig, run: RunFile, islands: int) -> Base:
    """Build the run's model from this machine's own files. Raises ConfigError where it is another one."""
    data, save = config.data, None
    if needs_text(config):
        whole = build_data(data, islands if shares_data(config) else 1, config.seed)
        vocab_size, eos_id, save = whole.vocab_size, whole.eos_id, whole.save_tokenizer
    else:
        tokenizer = data.tokenizer.load(_no_text, data.cache_dir.expanduser())
        vocab_size, eos_id, save = tokenizer.vocab_size, tokenizer.end_of_text_id, tokenizer.save
    model = build_model(config.model, vocab_size=vocab_size, max_tokens=data.seq_len, seed=config.seed, eos_id=eos_id)
    fragments = tuple(
        tuple((n, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in named.items())
        for named in parted(config, model)
    )
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    if (fragments, digest_all(frozen).hex() if frozen else None) != (run.fragments, run.data.get("frozen")):
        raise ConfigError(
            "model is not allowed: the run has other tensors, or base weights, than this machine makes of its settings."
            " Fix: use the same versions of lowcomm and transformers, and the same base model"
        )
    return Base(model=model, config=config, vocab_size=vocab_size, save_tokenizer=save)


def _no_text() -> Iterator[bytes]:
    raise ConfigError("data.tokenizer is trained on the run's text, which is not read here. Fix: use another tokenizer")


class ServedDirectory:
    """DIR, locked: where two write, nobody would know whose file is there."""

    def __init__(self, directory: Path, base: Base, run: RunFile) -> None:
        """Raises ConfigError for a directory that holds something else, or that another process writes to."""
        self.directory, self.base, self.run = directory, base, run
        self._lock = _lock(directory, run.run_id)
        for left in directory.glob(".new-*"):  # of a process that died
            shutil.rmtree(left, ignore_errors=True)
        self._work = directory / f".new-{os.getpid()}"
        self._complete = False
        """Whether this process has written what is the same for every version."""
        self._model = base.model
        if not is_tuned(base.model):
            self._model = in_dtype(base.model, torch.bfloat16)  # its parameters take the published bits as they are

    def close(self) -> None:
        """Give the directory back."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._lock.close()

    def write(self, fragments: Sequence[Bits], version: Version) -> None:
        """Make these the model's weights. Raises LowcommError where they can't be written; the old ones stay then."""
        named = dict(self._model.named_parameters())
        with torch.no_grad():
            for layout, bits in zip(self.run.layouts, fragments, strict=True):
                for name, view in layout.views(values_of(bits)).items():
                    named[name].copy_(view)
        try:
            self._swap(self._whole(), version)
        except (OSError, SafetensorError) as error:
            raise LowcommError(
                f"{self.directory} can't be written: {getattr(error, 'strerror', None) or error}. Fix: make room, or "
                "give another directory"
            ) from error
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _whole(self) -> PreTrainedModel:
        """The model in bf16, adapters merged."""
        model, base = self._model, self.base
        if not is_tuned(model):
            return cast("PreTrainedModel", model)
        if is_quantized(model):
            longest = base.config.data.seq_len
            model = unpacked_copy(base.config.model, model, vocab_size=base.vocab_size, max_tokens=longest)
        return in_dtype(model, torch.bfloat16)

    def _swap(self, model: PreTrainedModel, version: Version) -> None:
        make_directory(self._work)
        save_model(model, self._work, whole=True)
        _add_metadata(self._work / WEIGHTS, {"lowcomm.version": str(version.number), "lowcomm.digest": version.digest})
        if not self._complete:
            self.base.save_tokenizer(self._work)
            if self.base.config.data.chat_template == "chatml":
                (self._work / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
            for path in self._work.iterdir():
                if path.name != WEIGHTS:
                    path.replace(self.directory / path.name)
            self._complete = True
        (self._work / WEIGHTS).replace(self.directory / WEIGHTS)
        write_json(self.directory / VERSION, {"run_id": self.run.run_id, **version.as_json()})


def _add_metadata(path: Path, said: dict[str, str]) -> None:
    """Written beside, synced, renamed."""
    partial = path.with_name(f"{path.name}.partial")
    safetensors.torch.save_file(safetensors.torch.load_file(path), partial, metadata={"format": "pt", **said})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _lock(directory: Path, run_id: str) -> IO[str]:
    held = sorted(p.name for p in directory.iterdir()) if directory.is_dir() else []
    if directory.is_file() or (held and LOCK not in held):
        raise ConfigError(
            f"DIR = {str(directory)!r} holds other files ({', '.join(held[:3]) or 'it is one'}). Fix: name a new "
            "directory, or one that `lowcomm follow` made"
        )
    there = version_in(directory)
    if there is not None and there["run_id"] != run_id:
        raise ConfigError(
            f"DIR = {str(directory)!r} holds a model of another run ({str(there['run_id'])[:8]}). Fix: name a new "
            "directory"
        )
    try:
        make_directory(directory)
        handle = (directory / LOCK).open("w", encoding="utf-8")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"DIR = {str(directory)!r} is written by another `lowcomm follow`. Fix: name another directory"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"DIR = {str(directory)!r} can't be written ({error.strerror}). Fix: name another directory"
        ) from error
    return handle


def version_in(directory: Path) -> dict[str, Any] | None:
    """What a served directory says that it holds; None: nothing yet."""
    try:
        found = json.loads((directory / VERSION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "run_id" in found else None
