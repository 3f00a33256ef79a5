"""Models from a directory: what can't train is refused in one line before anything starts; dtypes of exports."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lowcomm as lc
from lowcomm.cli import main
from lowcomm.config import CheckpointConfig, SyncConfig
from lowcomm.model import Full, LoRA, ModelConfig, Tuning, build_model, export_dtype
from lowcomm.model.tuning import shape_of
from lowcomm.privacy import ClientGaussian
from lowcomm.run.assembly import check_buffers
from lowcomm.run.export import save_model
from lowcomm.trainer import train
from lowcomm.types import ConfigError, CoverageError
from tests.support import runs, toy

SMALL = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def directory_of(config: Any, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_model(AutoModelForCausalLM.from_config(config).to(dtype), path)
    return path


def llama(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    return directory_of(LlamaConfig(**SMALL, intermediate_size=64), path, dtype)


def build(directory: Path, tuning: Tuning | None = None) -> nn.Module:
    config = ModelConfig(directory=directory, tuning=tuning or Full())
    config.check()
    return build_model(config, vocab_size=257, max_tokens=32, seed=0, eos_id=256)


def edit(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SMALL, intermediate_size=64),
    "roberta": lambda: transformers.RobertaConfig(**SMALL, intermediate_size=64, pad_token_id=0),
    "electra": lambda: transformers.ElectraConfig(**SMALL, intermediate_size=64),
    "xlnet": lambda: transformers.XLNetConfig(vocab_size=260, d_model=32, n_layer=2, n_head=2, d_inner=64),
}
DECODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertConfig(**SMALL, intermediate_size=64, is_decoder=True),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2),
    "mixtral": lambda: transformers.MixtralConfig(
        **SMALL, intermediate_size=64, num_key_value_heads=2, num_local_experts=4
    ),
    "mamba": lambda: transformers.MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_a_model_that_sees_its_targets_is_refused(tmp_path: Path, name: str) -> None:
    path = directory_of(ENCODERS[name](), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"model\.directory = .* sees the tokens that it is to predict") as caught:
        build(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DECODERS)
def test_causal_models_of_any_architecture_pass(tmp_path: Path, name: str) -> None:
    model = build(directory_of(DECODERS[name](), tmp_path / "model"))
    assert model.training


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = llama(tmp_path / "model")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"][3] = torch.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.directory = .* logits are not finite"):
        build(path)


PACKAGES = {
    "flash": ({"attn_implementation": "flash_attention_2"}, "take attn_implementation out"),
    "kernels hub": ({"attn_implementation": "kernels-community/flash-attn2"}, "take attn_implementation out"),
    "4 bits": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "give the unquantised"),
    "8 bits": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "give the unquantised"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "give the unquantised"),
}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bitsandbytes", "flash_attn", "gptqmodel", "optimum"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    path = llama(tmp_path / "model")
    settings, fix = PACKAGES[name]
    edit(path, **settings)
    with pytest.raises(ConfigError, match=rf"needs a package that is not installed: .* Fix: install it, or {fix}") as e:
        build(path, LoRA(rank=2))
    assert "\n" not in str(e.value)


class Packed(nn.Linear):
    """A linear layer with two weights in a byte, as bitsandbytes keeps them: [out * in / 2, 1], uint8."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__(whole.in_features, whole.out_features, bias=False)
        self.whole = whole.weight.detach()
        data = torch.zeros(whole.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(data, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(input, self.whole)


def test_packed_weights_are_measured_by_what_they_stand_for() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, intermediate_size=64))
    for layer in model.model.layers:
        layer.self_attn.q_proj = Packed(layer.self_attn.q_proj)
    assert shape_of(model.model.layers[0].self_attn.q_proj) == (32, 32)
    with pytest.raises(ConfigError, match=r"model\.tuning\.rank = 40 is not allowed: 1 to 32"):
        LoRA(rank=40, targets=("q_proj",)).apply(model)
    tuned = LoRA(rank=4, targets=("q_proj",)).apply(model)
    assert {tuple(p.shape) for p in tuned.parameters() if p.requires_grad} == {(4, 32), (32, 4)}
    lc.LocalSGD(tuned, torch.optim.AdamW(tuned.parameters()), every=2)  # packed bytes are compared, not averaged


def test_a_base_that_is_unpacked_while_it_loads_is_an_ordinary_one(tmp_path: Path) -> None:
    path = llama(tmp_path / "model")
    edit(path, quantization_config={"quant_method": "mxfp4"})  # without a GPU transformers makes bf16 of it
    model = build(path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    save_model(model, tmp_path / "again")  # pyright: ignore[reportArgumentType]
    assert "quantization_config" not in (tmp_path / "again" / "config.json").read_text(encoding="utf-8")


def test_a_setting_that_a_directory_overrules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.tied_embeddings = True is not allowed"):
        ModelConfig(directory=llama(tmp_path / "model"), tied_embeddings=True).check()


# buffers


def deepseek(path: Path) -> Path:
    config = transformers.DeepseekV3Config(
        **SMALL, intermediate_size=64, moe_intermediate_size=16, num_key_value_heads=2, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=8,
        kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
    )  # fmt: skip
    return directory_of(config, path)


def test_a_model_with_buffers_trains_once_they_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that refuses it says which flags to add; with them it trains."""
    monkeypatch.setattr("lowcomm.run.launch.launch", lambda *_: pytest.fail("processes were started"))
    corpus = runs.write_corpus(tmp_path)
    recipe = runs.write_recipe(tmp_path, corpus)
    arguments = [f"{recipe}:local", "--model.directory", str(deepseek(tmp_path / "model")), "--steps", "4"]
    place = ["--run-dir", str(tmp_path / "run")]
    assert main(["train", *arguments, *place, "--transport", "collective"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "e_score_correction_bias" in said and not (tmp_path / "run").exists()
    advice = shlex.split(said[said.index("Fix: ") + 5 : said.index(" (local:")])
    assert advice == ["--sync.buffers", "*e_score_correction_bias", "average"]
    assert main(["simulate", *arguments, *place, *advice, "--sync.every", "2"]) == 0
    assert main(["simulate", *arguments, *place[:1], str(tmp_path / "2"), *advice[:1], "*bias", "local"]) == 0
    assert main(["simulate", *arguments, *place[:1], str(tmp_path / "3"), *advice[:1], "*typo", "local"]) == 2


def test_rules_for_buffers_are_checked(tmp_path: Path) -> None:
    corpus = runs.write_corpus(tmp_path)
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def check(buffers: Any) -> None:
        check_buffers(runs.small(corpus, None, sync=SyncConfig(every=4, buffers=buffers)), net)

    check({"*running*": "average", "*tracked": "local"})
    private = SyncConfig(
        every=4, buffers={"*running*": "average", "*": "local"}, privacy=ClientGaussian(clip=0.5, seed=1)
    )
    with pytest.raises(ConfigError, match=r"without the noise or masks of sync\.privacy"):
        check_buffers(runs.small(corpus, None, sync=private), net)
    with pytest.raises(ConfigError, match=r"sync.buffers '\*running_mean' average '\*running_var' average '\*num_b"):
        check(None)
    for wrong, words in (
        ({"*": "average"}, "cannot be averaged"),
        ({"*": "mean"}, "has the rule 'mean'"),
        ({"*": "local", "nothing": "local"}, "matches no buffer of the model"),
    ):
        with pytest.raises(ConfigError, match=words):
            check(wrong)


@pytest.mark.parametrize("shortcut", [lc.DiLoCo, lc.FedAvg, lc.SparseLoCo, lc.StreamingDiLoCo, lc.DiLoCoX])
def test_every_shortcut_takes_buffers(shortcut: Callable[..., lc.LocalSGD]) -> None:
    def model() -> nn.Module:
        layers = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(4)]
        return nn.ModuleDict({"layers": nn.ModuleList(layers)})

    first = model()
    with pytest.raises(CoverageError, match="is named nowhere"):
        shortcut(first, toy.sgd(first), every=100)
    second = model()
    shortcut(second, toy.sgd(second), every=100, buffers={"*running*": "average", "*tracked": "local"})


# export


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_the_export_has_the_dtype_of_its_base(tmp_path: Path, dtype: torch.dtype, tuning: Tuning) -> None:
    corpus = runs.write_corpus(tmp_path)
    base = llama(tmp_path / "base", dtype)
    assert export_dtype(ModelConfig(directory=base)) == dtype
    config = runs.small(
        corpus, tmp_path / "run", model=ModelConfig(directory=base, tuning=tuning), checkpoint=CheckpointConfig()
    )
    assert train(dataclasses.replace(config, steps=4)) == 0
    weights = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {dtype}
    assert not torch.equal(
        weights["model.layers.0.self_attn.q_proj.weight"],
        load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"],
    )
    told = json.loads((tmp_path / "run" / "export" / "config.json").read_text(encoding="utf-8"))
    assert told["dtype"] == str(dtype).removeprefix("torch.")
