"""Tensor parallel plans of transformers models: what is cut, what is refused, and training of other shapes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from lowcomm.island import AdamW, Inner, InnerConfig, Mesh, PlainIsland
from lowcomm.island.combined import Combined
from lowcomm.island.tensor_island import TensorIsland
from lowcomm.island.tensor_plan import plan_of
from lowcomm.model import token_losses
from lowcomm.types import ConfigError
from tests.support import runs
from tests.support.island_worker import batches

SHAPE = {
    "vocab_size": 33,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def tiny(name: str, **changes: Any) -> nn.Module:
    """Two layers of a model family, from one seed."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **changes})
    torch.manual_seed(1)
    return getattr(transformers, f"{name}ForCausalLM")(config).train()


MODELS: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True, "mlp_bias": True, "vocab_size": 32},  # biases after the sum over ranks are whole
    "Qwen3": {"head_dim": 8, "tie_word_embeddings": True},  # norms of single heads: their gradients are summed
    "Qwen2": {},  # biases of columns; a vocabulary that does not divide
}


@dataclass(frozen=True, kw_only=True)
class Apart(AdamW):
    """Matrices and vectors in optimizers of their own, as Muon has it, whose bf16 stalls on some CPUs."""

    shards = "spread"

    def build(self, model: nn.Module) -> Optimizer:
        parts = [[p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
        return Combined([torch.optim.AdamW(part, lr=self.lr, fused=True) for part in parts])


CASES: dict[str, tuple[str, Inner, float]] = {
    "Llama": ("Llama", AdamW(), 2e-5),
    "Qwen3": ("Qwen3", AdamW(), 2e-5),
    "Qwen2": ("Qwen2", AdamW(), 2e-5),
    "two optimizers": ("Qwen2", Apart(), 2e-5),
}


def made(name: str) -> nn.Module:
    return tiny(name, **MODELS[name])


def inner(case: str) -> InnerConfig:
    return InnerConfig(optimizer=CASES[case][1], clip_norm=0.1)


def train(island: PlainIsland) -> dict[str, list[float]]:
    """Three steps."""
    seen: dict[str, list[float]] = {"losses": [], "norms": []}
    for step in range(3):
        seen["losses"].append(island.backward(batches(0, step)))
        island.update(step)
        seen["norms"].append(island.grad_norm)
    return seen


def rank(out: str) -> int:
    """One of an island's two ranks, for each model."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = Mesh.build(2)
    for name, (family, _, _) in CASES.items():
        model = made(family)
        island = TensorIsland(model, inner(name), mesh, steps=4, seed=0, losses=token_losses, autocast_bf16=False)
        seen = train(island)
        state = island.whole_state()
        assert state is not None
        save_file({n: t.clone() for n, t in state.items()}, f"{out}/{name}.{mesh.rank}.safetensors")
        Path(f"{out}/{name}.{mesh.rank}.json").write_text(json.dumps(seen), encoding="utf-8")
    dist.destroy_process_group()
    return 0


def test_models_of_other_shapes_train_as_whole_ones(tmp_path: Path) -> None:
    """Losses, norms before clipping and weights after three steps, fp32: the order of sums differs."""
    log = tmp_path / "log"
    started = [runs.start(rank, (str(tmp_path),), log, variables) for variables in runs.islands_environment(2)]
    assert [runs.wait(child, log, 120) for child in started] == [0, 0], log.read_text(encoding="utf-8")
    for name, (family, _, tolerance) in CASES.items():
        island = PlainIsland(made(family), inner(name), steps=4, seed=0, losses=token_losses)
        expected = train(island)
        assert min(expected["norms"]) > 0.1  # clipping bites in every step
        for k in (0, 1):
            found = json.loads((tmp_path / f"{name}.{k}.json").read_text(encoding="utf-8"))
            assert found["losses"] == pytest.approx(expected["losses"], rel=max(1e-5, tolerance)), name
            assert found["norms"] == pytest.approx(expected["norms"], rel=max(1e-4, 10 * tolerance)), name
        state = load_file(tmp_path / f"{name}.0.safetensors")
        assert not load_file(tmp_path / f"{name}.1.safetensors")
        for key, tensor in island.model.state_dict().items():
            torch.testing.assert_close(state[key], tensor, rtol=0, atol=tolerance, msg=f"{name} {key}")


def test_what_a_plan_cuts() -> None:
    """Embeddings and output weights only where they are two tensors and the vocabulary divides."""
    ends = {"model.embed_tokens", "lm_head"}
    assert ends < set(plan_of(made("Llama"), 2))
    assert not ends & set(plan_of(tiny("Llama", vocab_size=32, tie_word_embeddings=True), 2))
    assert not ends & set(plan_of(tiny("Llama"), 2))
    plan = plan_of(made("Qwen3"), 2)
    assert plan["model.layers.1.self_attn.q_norm"] == "replicated_with_grad_allreduce"
    assert plan["model.layers.0.mlp.down_proj"] == "rowwise"
    assert len(plan) == 2 * 9


def without_plan() -> nn.Module:
    model = made("Llama")
    model._tp_plan = {}  # pyright: ignore[reportAttributeAccessIssue]
    return model


def with_style(style: str) -> nn.Module:
    model = made("Llama")
    model._tp_plan = {**model._tp_plan, "model.norm": style}  # pyright: ignore
    return model


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        (without_plan, 2, "brings no tensor parallel plan (model._tp_plan). Fix: --island.kind fsdp"),
        (lambda: nn.Linear(4, 4), 2, "not allowed for Linear, which brings no tensor parallel plan"),
        (lambda: made("Llama"), 4, "num_key_value_heads = 2 does not divide by it. Fix: pass a divisor of 2"),
        (lambda: tiny("Llama", intermediate_size=23), 2, "mlp.gate_proj has 23 outputs, which do not divide by it"),
        (lambda: with_style("sequence_parallel"), 2, "style 'sequence_parallel' for model.norm"),
        (lambda: with_style("colwise"), 2, "model.norm is a LlamaRMSNorm, not a Linear"),
    ],
)
def test_what_is_refused(model: Any, size: int, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_of(model(), size)
    assert words in str(refused.value) and "island." in str(refused.value)
