"""Models: transformers causal LMs from presets and directories."""

from lowcomm.model.build import ModelConfig, build_model, token_losses
from lowcomm.model.presets import SHAPES

__all__ = ["SHAPES", "ModelConfig", "build_model", "token_losses"]
