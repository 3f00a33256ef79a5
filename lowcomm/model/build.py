"""Causal language models of transformers, from a preset shape or a local directory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from lowcomm.model.causality import check_causal, first_line
from lowcomm.model.full import Full
from lowcomm.model.origin import Origin, Scratch
from lowcomm.model.presets import SHAPES, Shape, widened
from lowcomm.model.tuning import Tuning
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model is trained."""

    preset: Literal["nano", "tiny", "3m", "30m", "150m", "1b"] = "tiny"
    """Llama shape for a model from scratch (about 0.12M, 0.8M, 3M, 30M, 150M, 1B parameters)."""
    width: int | None = None
    """Hidden width instead of the preset's, with the feed-forward in proportion; None: the preset's."""
    directory: Path | None = None
    """Local transformers directory to start from instead of a preset."""
    origin: Origin = field(default_factory=Scratch)
    """A named model to start from, made or converted when it is first needed; Scratch: the preset or the directory."""
    tied_embeddings: bool | None = None
    """Whether a preset's output weights are its embeddings; None: tied but for 1b."""
    compile: bool = False
    """Compile the forward and backward with torch.compile (needs a C++ compiler; slow start, faster steps)."""
    autocast_bf16: bool = True
    """On a GPU, run forward and backward under bf16 autocast; weights and optimizer stay fp32."""
    tuning: Tuning = field(default_factory=Full)
    """What is trained: every parameter (Full), or LoRA, IA3, Prompt, Heads or BitFit on a frozen base."""

    def check(self) -> None:
        """Raise ConfigError for an unknown preset or a directory that holds no model."""
        require(self.preset in SHAPES, "model.preset", self.preset, f"one of {', '.join(SHAPES)}", "pick one of these")
        if self.width is not None:
            even = 2 * SHAPES[self.preset].heads  # an even number of elements per head, for rotary positions
            ok = self.width >= even and self.width % even == 0
            require(ok, "model.width", self.width, f"a multiple of {even}, for {self.preset}", f"pass {even * 8}")
            fix = "leave one of them out"
            require(self.directory is None, "model.width", self.width, "None where model.directory is set", fix)
        if self.directory is not None:
            is_model = (self.directory / "config.json").is_file()
            fix = "give a directory saved by save_pretrained"
            require(is_model, "model.directory", str(self.directory), "a directory with config.json", fix)
        alone = isinstance(self.origin, Scratch) or (self.directory is None and self.width is None)
        named = self.directory is not None or not isinstance(self.origin, Scratch)
        fix = "leave it out: a directory's own config.json says it"
        legal = "None where the model comes from a directory"
        require(self.tied_embeddings is None or not named, "model.tied_embeddings", self.tied_embeddings, legal, fix)
        fix = "leave out model.directory and model.width, or pass --model.origin 'Scratch()' to train the directory's"
        require(alone, "model.origin", self.origin, "Scratch() with a directory or a width", fix)
        self.tuning.check()


def build_model(
    config: ModelConfig, *, vocab_size: int, max_tokens: int, seed: int, eos_id: int, unpack: bool = False
) -> nn.Module:
    """A causal LM in fp32 on the CPU, ready to train; only what is tuned is trainable.

    vocab_size: tokens of the tokenizer; max_tokens: longest sequence; the same seed gives the same weights.
    unpack: turn quantised base weights into fp32 ones.
    Raises ConfigError for an unknown model type, a vocabulary that is too small or sequences that are too long.
    """
    model = _base_model(config, vocab_size=vocab_size, max_tokens=max_tokens, seed=seed, eos_id=eos_id)
    if unpack and is_quantized(model):
        model = cast("PreTrainedModel", cast("Any", model).dequantize()).float()
    if isinstance(config.tuning, Full):
        if is_quantized(model):
            raise ConfigError(
                "model.tuning = Full() is not allowed: the model's weights are quantised, which can't be trained. "
                "Fix: tune it with LoRA (QLoRA), or give the directory of the unquantised model"
            )
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return config.tuning.apply(model).train()


def source_of(config: ModelConfig) -> Path | None:
    """The directory that the base model comes from; None: it is made from scratch."""
    return config.origin.directory() or config.directory


def _base_model(config: ModelConfig, *, vocab_size: int, max_tokens: int, seed: int, eos_id: int) -> PreTrainedModel:
    directory = source_of(config)
    if directory is not None:
        return _load(directory, vocab_size, max_tokens)
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: Shape = SHAPES[config.preset]
    tied = config.preset != "1b" if config.tied_embeddings is None else config.tied_embeddings
    if config.width is not None:
        shape = widened(shape, config.width)
    llama = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=max(max_tokens, 512),
        tie_word_embeddings=tied,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(llama)
    return model.train()


def _load(directory: Path, vocab_size: int, max_tokens: int) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it would warn of is an error below
    try:
        model, info = cast(
            "tuple[PreTrainedModel, dict[str, Any]]",
            AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=False,
            ),
        )
    except ImportError as error:  # FlashAttention or a quantised base, whose package is not here
        packed = "quantization_config" in (directory / "config.json").read_text(encoding="utf-8")
        other = "give the unquantised model" if packed else "take attn_implementation out of its config.json"
        raise ConfigError(
            f"model.directory = {str(directory)!r} needs a package that is not installed: {first_line(error)} "
            f"Fix: install it, or {other}"
        ) from error
    except (ValueError, OSError, KeyError, RuntimeError, TypeError, AttributeError, SafetensorError) as error:
        cause = own_code(directory) or first_line(error)
        raise ConfigError(
            f"model.directory = {str(directory)!r} does not load as a transformers causal LM: {cause} "
            "Fix: give a directory saved by save_pretrained with safetensors weights."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise ConfigError(
            f"model.directory = {str(directory)!r} lacks the weights of {min(info['missing_keys'])} "
            f"({len(info['missing_keys'])} missing). Fix: give a directory saved by save_pretrained."
        )
    size = int(cast("Tensor", model.get_input_embeddings().weight).shape[0])
    fix = "use the model's own tokenizer (--data.tokenizer)"
    require(vocab_size <= size, "data.tokenizer", vocab_size, f"at most the model's {size} tokens", fix)
    said = int(getattr(model.config, "max_position_embeddings", None) or 0)
    longest = said if said > 0 else max_tokens  # XLNet says -1: no limit
    require(max_tokens <= longest, "data.seq_len", max_tokens, f"at most the model's {longest}", "shorten sequences")
    model = _unquantized(model)
    check_causal(model, "model.directory", str(directory), vocab_size=vocab_size, max_tokens=max_tokens)
    return model.train()


def own_code(directory: Path) -> str | None:
    """That a model directory names code of its own, which is never run; None: it names none."""
    try:
        names = json.loads((directory / "config.json").read_text(encoding="utf-8"))["auto_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return f"it asks for code of its own (auto_map: {' '.join(str(names).split())}), which is never run"


def is_quantized(model: nn.Module) -> bool:
    """Whether base weights are packed in few bits (bitsandbytes and others), so that they can't be trained."""
    if getattr(model, "hf_quantizer", None) is None:
        return False
    persistent = model.state_dict(keep_vars=True).values()
    return any(isinstance(t, Tensor) and not _is_plain(t.dtype) for t in persistent)


def _is_plain(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype.itemsize > 1


def _unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same model; one whose weights were unpacked while loading (fp8, mxfp4 on a CPU) forgets that they were."""
    if getattr(model, "hf_quantizer", None) is not None and not is_quantized(model):
        loose = cast("Any", model)
        loose.hf_quantizer, loose.is_quantized, loose.quantization_method = None, False, None  # else it can't be saved
        del loose.config.quantization_config
        model.float()
    return model


def token_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each target in nats, fp32 [batch * seq_len]; inputs, targets: int64 [batch, seq_len]."""
    logits = model(input_ids=inputs, use_cache=False).logits
    logits = logits[:, -targets.shape[1] :]  # a tuned prompt comes before the text
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
