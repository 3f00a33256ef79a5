"""Models: transformers causal LMs from presets and directories, and what of them is tuned."""

from lowcomm.model.adapter_files import save_adapter
from lowcomm.model.bitfit import BitFit
from lowcomm.model.build import ModelConfig, build_model, is_quantized, token_losses
from lowcomm.model.exported import export_dtype, unpacked_copy
from lowcomm.model.full import Full
from lowcomm.model.heads import Heads
from lowcomm.model.ia3 import IA3
from lowcomm.model.lora import LoRA
from lowcomm.model.origin import Origin, Scratch
from lowcomm.model.presets import SHAPES
from lowcomm.model.prompt import Prompt
from lowcomm.model.tuning import Tuning, is_tuned, merge_tuning

__all__ = [
    "IA3",
    "SHAPES",
    "BitFit",
    "Full",
    "Heads",
    "LoRA",
    "ModelConfig",
    "Origin",
    "Prompt",
    "Scratch",
    "Tuning",
    "build_model",
    "export_dtype",
    "is_quantized",
    "is_tuned",
    "merge_tuning",
    "save_adapter",
    "token_losses",
    "unpacked_copy",
]
