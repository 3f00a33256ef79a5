"""Models: transformers causal LMs from presets and directories, and what of them is tuned."""

from lowcomm.model.bitfit import BitFit
from lowcomm.model.build import ModelConfig, build_model, token_losses
from lowcomm.model.full import Full
from lowcomm.model.heads import Heads
from lowcomm.model.ia3 import IA3
from lowcomm.model.lora import LoRA
from lowcomm.model.origin import Origin, Scratch
from lowcomm.model.presets import SHAPES
from lowcomm.model.prompt import Prompt
from lowcomm.model.tuning import Tuning, merge_tuning

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
    "merge_tuning",
    "token_losses",
]
