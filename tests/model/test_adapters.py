"""Adapters on disk: settings that must be alike, what LoRA can tune, and what a run with a tuned model leaves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lowcomm.aggregate.lora import FedSA, FedSB, FlexLoRA, FLoRA, LoraRule
from lowcomm.codec import Codec, Fp32, Shared
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import build_data
from lowcomm.federated import mean_loss
from lowcomm.model import IA3, LoRA, ModelConfig, Prompt, Tuning, merge_tuning, token_losses
from lowcomm.model.tuning import matching
from lowcomm.outer import SGD
from lowcomm.run.export import save_model
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.run.test_lora_run import small, write_clients
from tests.support import runs

SIZES: Any = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CPU = torch.device("cpu")


def llama(*, tied: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, tie_word_embeddings=tied))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    save_model(llama(), path)
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clients(tmp_path_factory.mktemp("corpus"))


def saved(base: Path, path: Path, **settings: Any) -> tuple[Path, nn.Module]:
    """A peft adapter with random values, and its model."""
    values = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **settings}
    tuned = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**values))
    generator = torch.Generator().manual_seed(1)
    for p in tuned.parameters():
        if p.requires_grad:
            p.data.copy_(p.data + 0.3 * torch.randn(p.shape, generator=generator))
    tuned.save_pretrained(str(path))
    return path, tuned.eval()


def loss(model: Any) -> float:
    ids = torch.arange(20)[None]
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "alpha": ({"lora_alpha": 64}, {"alpha": 64.0}),
    "rslora": ({"use_rslora": True}, {"rslora": True}),
    "dora": ({"use_dora": True}, {"dora": True}),
    "dropout": ({"lora_dropout": 0.3}, {}),
    "modules_to_save": ({"modules_to_save": ["lm_head", "norm"]}, {"modules_to_save": ("norm", "lm_head")}),
    "all-linear": ({"target_modules": "all-linear"}, {"targets": "all-linear"}),
    "regex": ({"target_modules": r".*layers\.1\..*_proj"}, {"targets": r".*layers\.1\..*_proj"}),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_an_adapter_of_the_same_settings_gives_pefts_loss_and_any_other_is_refused(
    tmp_path: Path, base: Path, name: str
) -> None:
    theirs, ours = SAME[name]
    path, tuned = saved(base, tmp_path / "adapter", **theirs)
    mine = LoRA(rank=4, adapter=path, **ours)
    mine.check()
    assert loss(mine.apply(AutoModelForCausalLM.from_pretrained(base))) == loss(tuned)
    if ours:
        with pytest.raises(ConfigError, match=r"model\.tuning") as caught:
            LoRA(rank=4, adapter=path).apply(AutoModelForCausalLM.from_pretrained(base))
        assert "\n" not in str(caught.value)
        if name in ("alpha", "rslora", "dora", "modules_to_save"):
            with pytest.raises(ConfigError, match=rf"model\.tuning\.{name} = "):
                LoRA(rank=4, adapter=path).check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = pissa"),
        ({"peft_type": "IA3"}, "a LoRA adapter, not IA3"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"something_new": 3}, "something_new = 3"),
        ({"r": 8}, r"model\.tuning\.rank = 4 is not allowed"),
        (None, "can't be read"),
    ],
)
def test_settings_that_lora_has_not_are_refused(tmp_path: Path, changes: dict[str, Any] | None, words: str) -> None:
    settings = {
        **peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"]).to_dict(),
        "target_modules": ["q_proj"],
    }
    text = "{" if changes is None else json.dumps({**settings, "peft_type": "LORA", **changes})
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ConfigError, match=words):
        LoRA(rank=4, adapter=tmp_path).check()
    with pytest.raises(ConfigError, match=r"model\.tuning\.adapter = .*train='core'"):
        LoRA(rank=4, adapter=tmp_path, train="core").check()
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match=r"a directory with adapter_config\.json"):
        LoRA(rank=4, adapter=tmp_path).check()


# what can be tuned


@pytest.mark.parametrize("make", [llama, lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2))])
@pytest.mark.filterwarnings("ignore:.*fan_in_fan_out", "ignore:.*is_gradient_checkpointing")
def test_all_linear_is_what_peft_has(make: Any) -> None:
    settings = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(make(), settings)
    for targets in ("all-linear", ("all-linear",)):
        ours = LoRA(rank=2, targets=targets).apply(make())
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


def test_targets_are_names_ends_of_paths_or_regular_expressions() -> None:
    model = llama()
    for names, count in (
        (("q_proj",), 2),
        (("self_attn.q_proj", r".*\.0\.mlp\..*_proj"), 5),
        ((r"model\.layers\.1\.(self_attn|mlp)\.\w+_proj",), 7),
        (("q", "proj"), 0),
    ):
        assert len(matching(model, names)) == count
    for targets, words in (
        ("*_proj", r"no regular expression"),
        ("q_pro", "matches no layer"),
        ("", "at least one name"),
        (".*", "matches no layer"),  # norms and containers too
        (r"lm_head|.*q_proj", None),
    ):
        tuning = LoRA(rank=2, targets=targets)
        if words is None:
            tuning.apply(llama())
            with pytest.raises(ConfigError, match=r"lm_head shares its weight"):
                tuning.apply(llama(tied=True))
            continue
        with pytest.raises(ConfigError, match=words):
            tuning.check()
            tuning.apply(llama())


def test_dropout_is_there_in_training_only() -> None:
    model = LoRA(rank=2, dropout=0.5).apply(llama())
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_()
    ids = torch.arange(16)[None]
    model.train()
    assert not torch.equal(token_losses(model, ids, ids), token_losses(model, ids, ids))
    model.eval()
    assert torch.equal(token_losses(model, ids, ids), token_losses(model, ids, ids))
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"model\.tuning\.dropout"):
            LoRA(dropout=wrong).check()


def test_whole_modules_are_trained_beside_the_factors_and_merged() -> None:
    tuning = LoRA(rank=2, modules_to_save=("lm_head", "model.norm"))
    model = tuning.apply(llama())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len([n for n in trained if "modules_to_save" in n]) == 2
    for name, p in model.named_parameters():
        if name in trained:
            p.data.add_(0.1)
    ids = torch.arange(16)[None]
    merged = merge_tuning(model)
    assert not any("modules_to_save" in n for n, _ in merged.named_parameters())
    torch.testing.assert_close(token_losses(merged, ids, ids), token_losses(model, ids, ids))
    for modules, words in (
        (("score",), "matches no layer"),
        (("q_proj",), "modules that no target names"),
        ("lm_head", "names of modules"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong = LoRA(rank=2, modules_to_save=modules)  # pyright: ignore[reportArgumentType]
            wrong.check()
            wrong.apply(llama())
    with pytest.raises(ConfigError, match=r"modules_to_save = .* shares its weight with .*embed_tokens"):
        tuning.apply(llama(tied=True))


# what a run leaves behind


def run(corpus: Path, base: Path, run_dir: Path, tuning: Tuning, **sync: Any) -> RunConfig:
    return small(
        corpus, run_dir, "fedit", steps=6, model=ModelConfig(directory=base, tuning=tuning),
        sync=SyncConfig(every=3, outer=SGD(lr=1.0), **sync), checkpoint=CheckpointConfig(),
        eval=EvalConfig(clients=True),
    )  # fmt: skip


def val_loss(model: nn.Module, config: RunConfig) -> float:
    assert config.islands is not None
    return mean_loss(model, build_data(config.data, config.islands, config.seed).validation_batches(), CPU)


TUNINGS: dict[str, Tuning] = {
    "lora": LoRA(rank=4, dropout=0.1, modules_to_save=("norm",)),
    "rslora": LoRA(rank=4, rslora=True, targets="all-linear"),
    "dora": LoRA(rank=4, dora=True),
    "ia3": IA3(),
    "prompt": Prompt(tokens=4),
}


@pytest.mark.parametrize("name", TUNINGS)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_the_adapter_is_the_run_and_a_start_for_the_next(tmp_path: Path, corpus: Path, base: Path, name: str) -> None:
    config = run(corpus, base, tmp_path / "run", TUNINGS[name])
    assert train(config) == 0
    told = runs.summary(tmp_path / "run")["val_loss"]
    path = tmp_path / "run" / "adapter"
    assert {p.name for p in path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    tuned = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(path))
    assert val_loss(tuned, config) == pytest.approx(told, abs=1e-6)
    assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base.resolve())
    if name != "prompt":
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
        assert val_loss(merged, config) == pytest.approx(told, abs=1e-5)
    assert not (tmp_path / "run" / "personal").exists()
    tuning = TUNINGS[name]
    if isinstance(tuning, LoRA):
        again = dataclasses.replace(tuning, adapter=path).apply(AutoModelForCausalLM.from_pretrained(base))
        assert val_loss(again, config) == val_loss(tuned, config)


PERSONAL: dict[str, tuple[LoraRule, Codec]] = {
    "private factors": (FedSA(rank=4), Shared()),
    "ranks of their own": (FlexLoRA(rank=4, ranks=(4, 2)), Fp32()),
    "ranks under rslora": (FlexLoRA(rank=4, ranks=(2, 3), rslora=True), Fp32()),
}


@pytest.mark.parametrize("name", PERSONAL)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_export_is_the_global_model_and_personal_ones_lie_apart(
    tmp_path: Path, corpus: Path, base: Path, name: str
) -> None:
    rule, codec = PERSONAL[name]
    tuning = LoRA(rank=4, rslora=rule.rslora)
    config = run(corpus, base, tmp_path / "run", tuning, aggregator=rule, codec=codec)
    assert train(config) == 0
    told = runs.summary(tmp_path / "run")["val_loss"]
    export = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    assert val_loss(export, config) == pytest.approx(told, abs=1e-5)
    path = tmp_path / "run" / "adapter"
    tuned = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(path))
    assert val_loss(tuned, config) == pytest.approx(told, abs=1e-6)
    if name == "private factors":  # no B is ever global: the global model is the base
        whole = load_file(tmp_path / "run" / "export" / "model.safetensors")
        assert all(torch.equal(t, whole[n]) for n, t in load_file(base / "model.safetensors").items())
    clients = json.loads((tmp_path / "run" / "clients.json").read_text(encoding="utf-8"))["clients"]
    data = build_data(config.data, 2, config.seed)
    there = sorted(p.name for p in (tmp_path / "run" / "personal").iterdir())
    assert there == (["island-1"] if name == "ranks of their own" else ["island-0", "island-1"])
    for island in (0, 1):
        own = tmp_path / "run" / "personal" / f"island-{island}"
        if not own.exists():
            continue
        personal = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(own))
        batches = data.own_validation_batches(island)
        assert mean_loss(personal, batches, CPU) == pytest.approx(clients["own"][island], abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_a_core_is_written_as_a_plain_lora(tmp_path: Path, corpus: Path, base: Path) -> None:
    config = run(corpus, base, tmp_path / "run", LoRA(rank=4, train="core"), aggregator=FedSB(rank=4))
    assert train(config) == 0
    path = tmp_path / "run" / "adapter"
    tuned = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(path))
    assert val_loss(tuned, config) == pytest.approx(runs.summary(tmp_path / "run")["val_loss"], abs=1e-6)
    LoRA(rank=4, adapter=path).apply(AutoModelForCausalLM.from_pretrained(base))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_a_rule_that_moves_the_base_leaves_no_adapter_that_would_not_fit_it(
    tmp_path: Path, corpus: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run(corpus, base, tmp_path / "run", LoRA(rank=4), aggregator=FLoRA(rank=4))
    assert train(config) == 0
    export = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export")
    assert val_loss(export, config) == pytest.approx(runs.summary(tmp_path / "run")["val_loss"], abs=1e-5)
    assert not (tmp_path / "run" / "adapter").exists() and "no adapter/" in capsys.readouterr().out
