"""What a run leaves to use: the global model, the adapter that made it, and islands' personal models.

export/               the global weights merged into the base, in the base's dtype, with the tokenizer: transformers
adapter/              the tuned values alone, as peft writes them (LoRA, IA3, a prompt)
personal/island-K/    the adapter of an island whose model is its own (private factors, a rank or scale of its own),
                      written where that island is
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lowcomm.aggregate.lora import LoraRule
from lowcomm.hooks.lora import tuned_modules
from lowcomm.model import export_dtype, is_quantized, is_tuned, merge_tuning, save_adapter, unpacked_copy
from lowcomm.run.assembly import Run, build_models
from lowcomm.run.finale import with_global_weights
from lowcomm.types import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export(run: Run) -> None:
    """Write all that is to be used of a run that is done. Every island takes part; the first that is left, and each
    site that keeps its data, writes what is global.

    Raises CheckpointError if something can't be written.
    """
    if not run.config.checkpoint.export:
        return
    _write_personal(run)
    there = run.sync.transport
    first = there.local[0] == there.present[0] or run.config.data.sharding == "own"
    with with_global_weights(run.sync.state):
        state = run.islands[0].whole_state() if first else None
        if run.writes:
            _write_global(run, _whole(run, state))


def _write_global(run: Run, model: nn.Module) -> None:
    rule = run.sync.spec.aggregator
    moved = isinstance(rule, LoraRule) and rule.moves_base
    if is_tuned(model) and not moved:
        with _writing(run.directory / "adapter") as directory:
            save_adapter(model, directory)
    if moved:
        run.progress.note(f"no adapter/: {type(rule).__name__} adds to base weights, which export/ holds")
    if is_quantized(model):
        model = unpacked_copy(
            run.config.model, model, vocab_size=run.data.vocab_size, max_tokens=run.config.data.seq_len
        )
    with _writing(run.directory / "export") as directory:
        save_model(in_dtype(model, export_dtype(run.config.model)), directory)
        run.data.save_tokenizer(directory)


def _whole(run: Run, state: dict[str, Tensor] | None) -> nn.Module:
    """The model that was trained, or a new one with the weights of an island that holds them in parts (`state`)."""
    if state is None:
        return run.islands[0].model
    whole = build_models(run.config, run.data, 1, torch.device("cpu"))[0]
    whole.load_state_dict(state)
    return whole


def in_dtype(model: nn.Module, dtype: torch.dtype) -> PreTrainedModel:
    """A merged copy in the base's dtype, but for what transformers keeps in fp32; fp32 models without tuning as is."""
    merged = merge_tuning(model)
    if dtype == torch.float32:
        return cast("PreTrainedModel", merged)
    merged = copy.deepcopy(merged) if merged is model else merged
    fp32 = [*(_names(merged, "_keep_in_fp32_modules")), *(_names(merged, "_keep_in_fp32_modules_strict"))]
    for name, tensor in [*merged.named_parameters(), *merged.named_buffers()]:
        if tensor.is_floating_point() and not any(kept in name for kept in fp32):
            tensor.data = tensor.data.to(dtype)
    return cast("PreTrainedModel", merged)


def _names(model: nn.Module, attribute: str) -> list[str]:
    return list(getattr(model, attribute, None) or ())


def _write_personal(run: Run) -> None:
    """The adapters of local islands whose model is not the global one: only a LoRA rule leaves islands apart."""
    rule, sync = run.sync.spec.aggregator, run.sync
    mesh = sync.replicas[0].part.mesh
    if not isinstance(rule, LoraRule) or rule.moves_base or (mesh is not None and mesh.size > 1):
        return
    sync.wait()
    merged = sync.weights()
    for replica, island in zip(sync.replicas, sync.transport.local, strict=True):
        same = replica.idle or all(torch.equal(held, merged[name].to(held)) for name, held in replica.held.items())
        if not same:
            replica.take_turn()
            with _writing(run.directory / "personal" / f"island-{island}") as directory:
                save_adapter(replica.model, directory, _scale_of(replica.model))


def _scale_of(model: nn.Module) -> float | None:
    """alpha / r under which a model's factors work now."""
    scales = [next(iter(cast("dict[str, float]", m.scaling).values())) for _, m in tuned_modules(model)]
    return scales[0] if scales else None


def save_model(model: PreTrainedModel, directory: Path, *, whole: bool = False) -> None:
    """`save_pretrained` without a progress bar, and without an import of DeepSpeed to ask if the model is one of its.

    whole: all weights in one file, however large. Raises OSError or SafetensorError.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # one shard of weights needs no bar of its own
    with _without_deepspeed(), _on_any_rank(model):
        if whole:
            model.save_pretrained(directory, max_shard_size=sys.maxsize)
        else:
            model.save_pretrained(directory)


@contextmanager
def _on_any_rank(model: PreTrainedModel) -> Iterator[None]:
    """Within, `save_pretrained` writes on every rank that calls it: on all but rank 0 transformers writes nothing."""
    loose = cast("Any", model)
    loose.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del loose.should_save_on_this_rank


@contextmanager
def _without_deepspeed() -> Iterator[None]:
    """Within, accelerate takes DeepSpeed for not installed where nobody has imported it: no model can be an engine.

    Importing it takes seconds, prints a warning and looks for accelerators.
    """
    try:
        from accelerate.utils import other
    except ImportError:
        yield
        return
    if "deepspeed" in sys.modules:
        yield
        return
    loose = cast("Any", other)
    asked = loose.is_deepspeed_available
    loose.is_deepspeed_available = lambda: False
    try:
        yield
    finally:
        loose.is_deepspeed_available = asked


@contextmanager
def _writing(directory: Path) -> Iterator[Path]:
    try:
        yield directory
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"the export could not be written to {directory}: {cause}. "
            "Fix: free some space and continue with --resume auto"
        ) from error
