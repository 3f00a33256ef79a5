"""Runs with tuned models: bad input, processes against the simulation, resume, clients' table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lowcomm import recipe
from lowcomm.aggregate import Aggregator
from lowcomm.aggregate.lora import FedEx, FedIT, FedRand, FlexLoRA, HetLoRA, SenderMean
from lowcomm.codec import Codec, EitherFactor, Fp32, Int8, LargestLayers
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, TextFiles, build_data
from lowcomm.federated import worst_tenth
from lowcomm.island import AdamW, InnerConfig
from lowcomm.local import RankDecay, SelectLayers
from lowcomm.local.select_layers import layer_of
from lowcomm.model import IA3, BitFit, Full, Heads, LoRA, ModelConfig, Prompt, build_model, merge_tuning, token_losses
from lowcomm.model.tuning import Tuning
from lowcomm.outer import SGD
from lowcomm.report.html import write_report
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.support import runs
from tests.support.refusals import refused

RECIPE = """
from pathlib import Path
from tests.run.test_lora_run import METHODS, small

def plain():
    return small(Path({corpus!r}), None, "fedit")

def fedex():
    return small(Path({corpus!r}), None, "fedex")

def fedrand():
    return small(Path({corpus!r}), None, "fedrand")

def flexlora():
    return small(Path({corpus!r}), None, "flexlora")

def selective():
    return small(Path({corpus!r}), None, "selective")
def hetlora():
    return small(Path({corpus!r}), None, "hetlora")
"""
METHODS: dict[str, tuple[Aggregator, Codec]] = {
    "fedit": (FedIT(rank=2), Fp32()),
    "fedex": (FedEx(rank=2), Int8(exchange="gather")),
    "fedrand": (FedRand(rank=2), EitherFactor()),
    "flexlora": (FlexLoRA(rank=4, ranks=(4, 2)), Fp32()),
    "selective": (SenderMean(rank=2), LargestLayers(budget_bytes=2_048)),
    "hetlora": (HetLoRA(rank=4, ranks=(4, 3), gamma=0.75), Fp32()),
}
TARGETS = {"selective": ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")}
"""Of those that have others than q and v."""
OBJECTIVES = {
    "selective": SelectLayers(budget_bytes=2_048),
    "hetlora": RankDecay(strength=1.0, gamma=0.75),
}
"""Of those that have one."""
LR = {"hetlora": 1e-2}


def write_clients(directory: Path) -> Path:
    """Two folders of text, each with files of its own."""
    parts = runs.write_corpus(directory)
    for i, path in enumerate(sorted(parts.glob("*.txt"))):
        folder = directory / ("a" if i % 2 else "b")
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    return directory


def small(corpus: Path, run_dir: Path | None, method: str, **changes: Any) -> RunConfig:
    rule, codec = METHODS[method]
    rank = rule.rank  # pyright: ignore[reportAttributeAccessIssue]
    base = RunConfig(
        islands=2,
        steps=9,
        threads=1,
        transport="simulated",
        device="cpu",
        run_dir=run_dir,
        tensorboard=False,
        data=DataConfig(
            source=TextFiles(glob=str(corpus / "*" / "*.txt")),
            sharding="by_folder",
            seq_len=32,
            batch_size=2,
            validation_sequences=8,
            validation_fraction=0.3,
        ),
        model=ModelConfig(preset="nano", tuning=LoRA(rank=rank, targets=TARGETS.get(method, ("q_proj", "v_proj")))),
        inner=InnerConfig(optimizer=AdamW(lr=LR.get(method, 3e-3))),
        sync=SyncConfig(every=3, outer=SGD(lr=1.0), aggregator=rule, codec=codec, objective=OBJECTIVES.get(method)),
        checkpoint=CheckpointConfig(every_rounds=1, keep=4, export=False),
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clients(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tuned.py"
    path.write_text(RECIPE.format(corpus=str(corpus)), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["fedex", "fedrand", "flexlora", "selective", "hetlora"])
def test_processes_give_the_simulations_bits(tmp_path: Path, corpus: Path, recipe_file: Path, method: str) -> None:
    simulated = tmp_path / "simulated"
    assert train(small(corpus, simulated, method)) == 0
    log = tmp_path / "log"
    arguments = ["train", f"{recipe_file}:{method}", "--transport", "collective", "--run-dir", str(tmp_path / "real")]
    assert runs.run_islands(arguments, 2, log) == [0, 0], log.read_text(encoding="utf-8")
    runs.assert_same(runs.outcome(tmp_path / "real"), runs.outcome(simulated))
    assert ranks_told(tmp_path / "real") == ranks_told(simulated)
    if method == "hetlora":
        assert list(ranks_told(simulated).values()) == [4, 3, 4, 2, 3, 1]


def ranks_told(run_dir: Path) -> dict[tuple[int, int], int | None]:
    """By round and island."""
    lines = [line for line in runs.metrics(run_dir) if line["event"] == "sync"]
    return {(line["round"], line["island"]): line["rank"] for line in lines}


@pytest.mark.parametrize("method", ["fedex", "fedrand"])
def test_resume_is_bit_exact(tmp_path: Path, corpus: Path, method: str) -> None:
    whole, halves = small(corpus, tmp_path / "whole", method), small(corpus, tmp_path / "halves", method)
    stopped = dataclasses.replace(halves, checkpoint=dataclasses.replace(halves.checkpoint, stop_at_step=5))
    assert train(whole) == 0
    assert train(stopped) == 3
    assert train(dataclasses.replace(halves, resume=True)) == 0
    runs.assert_same(runs.outcome(tmp_path / "halves"), runs.outcome(tmp_path / "whole"))


def moved_layers(checkpoints: Path, saved: str, island: int) -> set[str]:
    """Those that are not where the round began that the run was stopped in."""
    now, start = (load_file(checkpoints / x / f"island-{island:05}/island.safetensors") for x in (saved, saved[:6]))
    return {layer_of(n) for n, w in now.items() if "lora" in n and not torch.equal(w, start[n])}


def test_selected_layers_are_kept_by_a_run_that_stops_inside_a_round(tmp_path: Path, corpus: Path) -> None:
    """Twice in one round, then in the next, whose choice is another."""
    whole, parts = small(corpus, tmp_path / "whole", "selective"), small(corpus, tmp_path / "parts", "selective")
    assert train(whole) == 0
    moved: list[list[set[str]]] = []
    for step, saved in ((4, "000001-stop0"), (5, "000001-stop1"), (7, "000002-stop2")):
        stopped = dataclasses.replace(parts.checkpoint, stop_at_step=step)
        assert train(dataclasses.replace(parts, checkpoint=stopped, resume=step > 4)) == 3
        moved.append([moved_layers(parts.directory / "checkpoints", saved, k) for k in range(2)])
    assert moved[0] == moved[1] != moved[2]
    assert {len(layers) for by_island in moved for layers in by_island} == {2}, "of 12"
    assert train(dataclasses.replace(parts, resume=True)) == 0
    runs.assert_same(runs.outcome(tmp_path / "parts"), runs.outcome(tmp_path / "whole"))


def test_a_run_reports_its_error_and_its_clients(tmp_path: Path, corpus: Path) -> None:
    config = small(corpus, tmp_path / "run", "fedit", eval=EvalConfig(clients=True, baselines=True))
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(every_rounds=1, export=True))
    assert train(config) == 0
    syncs = [line for line in runs.metrics(tmp_path / "run") if line["event"] == "sync"]
    assert all(line["aggregation_error"] > 0 for line in syncs)
    assert any("aggregation error" in (line["note"] or "") for line in runs.metrics(tmp_path / "run"))
    table = json.loads((tmp_path / "run" / "clients.json").read_text(encoding="utf-8"))
    assert set(table["clients"]) == {"before", "after", "own", "local", "centralised"}
    assert all(len(values) == 2 for values in table["clients"].values())
    assert table["mean"]["after"] < table["mean"]["before"]
    assert table["worst_10pct"]["after"] == max(table["clients"]["after"])
    low, high = sorted(table["clients"]["own"])
    assert table["spread"]["own"] == pytest.approx((high - low) / 2)
    assert table["percentiles"]["own"]["p10"] == pytest.approx(low + 0.1 * (high - low))
    assert table["helped"]["below_before"] == 1.0
    page = write_report([tmp_path / "run"]).read_text(encoding="utf-8")
    assert "What it was worth to each client" in page and "on all text in one place" in page
    summary = runs.summary(tmp_path / "run")
    assert summary["parameters_trainable"] < 0.1 * summary["parameters"]
    exported = load_file(tmp_path / "run" / "export" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in exported)
    saved = load_file(next((tmp_path / "run" / "checkpoints").glob("*/island-00000/island.safetensors")))
    assert not [name for name in saved if name.startswith("model.") and ".lora_" not in name]


def test_worst_tenth() -> None:
    assert worst_tenth([1.0, 3.0, 2.0]) == 3.0
    assert worst_tenth([float(i) for i in range(20)]) == 18.5


TUNINGS: dict[str, Tuning] = {
    "lora": LoRA(rank=2),
    "rslora": LoRA(rank=2, rslora=True),
    "dora": LoRA(rank=2, dora=True),
    "ffa": LoRA(rank=2, train="B"),
    "core": LoRA(rank=2, train="core"),
    "ia3": IA3(),
    "prompt": Prompt(tokens=3),
    "heads": Heads(),
    "bitfit": BitFit(norms=True),
}


def build(tuning: Tuning, seed: int = 0) -> torch.nn.Module:
    config = ModelConfig(preset="nano", tuning=tuning)
    config.check()
    return build_model(config, vocab_size=260, max_tokens=32, seed=seed, eos_id=256)


@pytest.mark.parametrize("name", TUNINGS)
def test_tunings_train_a_part_and_leave_the_rest(name: str) -> None:
    model, whole = build(TUNINGS[name]), build(Full())
    again = build(TUNINGS[name])
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert 0 < sum(p.numel() for p in trainable.values()) < 0.2 * sum(p.numel() for p in whole.parameters())
    same = zip(model.named_parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in same)  # one seed, one model
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    ids = torch.arange(64).view(2, 32) % 260
    first = token_losses(model, ids, ids).mean()
    if name not in ("prompt",):
        assert torch.allclose(first, token_losses(whole, ids, ids).mean(), atol=1e-5)  # it starts as the base
    optimizer = torch.optim.Adam(trainable.values(), lr=1e-3)
    for _ in range(3):
        token_losses(model, ids, ids).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert token_losses(model, ids, ids).mean() < first
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    if name != "prompt":
        merged = merge_tuning(model)
        assert torch.allclose(token_losses(merged, ids, ids), token_losses(model, ids, ids), atol=1e-4)


@pytest.mark.parametrize(
    ("tuning", "words"),
    [
        (LoRA(rank=0), "model.tuning.rank = 0 is not allowed"),
        (LoRA(rank=65), "model.tuning.rank = 65 is not allowed: 1 to 64, the width of"),
        (LoRA(targets=("c_attn",)), "model.tuning.targets = .*matches no layer.*q_proj"),
        (LoRA(targets=("q_proj", "query")), "'query'.*matches no layer"),
        (LoRA(targets=()), "model.tuning.targets"),
        (LoRA(alpha=0.0), "model.tuning.alpha"),
        (LoRA(train="A"), "model.tuning.train"),  # pyright: ignore[reportArgumentType]
        (LoRA(adapter=Path("nowhere")), "model.tuning.adapter = 'nowhere'"),
        (IA3(targets=("nothing",), feedforward=()), "matches no layer"),
        (IA3(feedforward=("up_proj",)), "model.tuning.feedforward"),
        (Prompt(tokens=0), "model.tuning.tokens = 0"),
        (Prompt(tokens=512), "model.tuning.tokens = 512.*the model has 512 positions"),
        (Heads(modules=("score",)), "model.tuning.modules.*matches no layer"),
        (BitFit(), "the model has no bias"),
    ],
)
def test_bad_tunings(tuning: Tuning, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build(tuning)
    assert "\n" not in str(caught.value)


def test_an_adapter_is_loaded_and_one_of_another_base_is_refused(tmp_path: Path) -> None:
    model = build(LoRA(rank=2))
    for p in model.parameters():
        if p.requires_grad:
            p.data.normal_()
    model.save_pretrained(tmp_path / "adapter")  # pyright: ignore[reportCallIssue]
    back = build(LoRA(rank=2, adapter=tmp_path / "adapter"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(), strict=True))
    with pytest.raises(ConfigError, match=r"model\.tuning\.rank = 4 is not allowed: .* says r = 2"):
        build(LoRA(rank=4, adapter=tmp_path / "adapter"))
    other = ModelConfig(preset="nano", width=32, tuning=LoRA(rank=2, adapter=tmp_path / "adapter"))
    with pytest.raises(ConfigError, match="is of another base model or other settings"):
        build_model(other, vocab_size=260, max_tokens=32, seed=0, eos_id=256)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.tuning.rank", "0"], "model.tuning.rank = 0"),
        (["--model.tuning.rank", "65", "--sync.aggregator.rank", "65"], "model.tuning.rank = 65"),
        (["--model.tuning.targets", "query"], "matches no layer"),
        (["--sync.aggregator.alpha", "4"], "sync.aggregator.alpha = 4"),
        (["--eval.baselines"], "eval.baselines"),
        (["--eval.membership"], "eval.membership"),
        (["--eval.clients", "--data.sharding", "iid"], "eval.clients"),
        (["--islands", "3"], "by_folder"),
        (["--transport", "simulated", "--batched"], "batched"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    recipe_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    words: str,
) -> None:
    said = refused(f"{recipe_file}:plain", arguments, tmp_path / "new", capsys, monkeypatch)
    assert words in said


def test_base_weights_that_a_rule_changes_are_still_parameters(tmp_path: Path, corpus: Path) -> None:
    for method in ("fedit", "fedex"):
        assert train(small(corpus, tmp_path / method, method)) == 0
    plain, loosened = (runs.summary(tmp_path / method) for method in ("fedit", "fedex"))
    for count in ("parameters", "parameters_trainable"):
        assert plain[count] == loosened[count]


def test_by_folder_gives_each_island_its_folder(corpus: Path) -> None:
    config = small(corpus, None, "fedit").data
    data = build_data(config, 2, 0)
    texts = {f: "".join(p.read_text(encoding="utf-8") for p in sorted((corpus / f).glob("*.txt"))) for f in "ab"}
    for island, folder in enumerate("ab"):
        for inputs, _ in [data.shard(island).next_batch(), *data.own_validation_batches(island)]:
            for row in inputs:
                line = max(bytes(t for t in row.tolist() if t < 256).decode().split("\n"), key=len)
                assert line in texts[folder]
    assert build_data(dataclasses.replace(config, sharding="iid"), 2, 0).own_validation_batches(0) == []


def test_recipes_of_every_method_name_their_parts() -> None:
    names = {info.name.partition(":")[2] for info in recipe.packaged() if info.name.startswith("fed_lora.py")}
    assert {"smoke", "fedit", "ffa", "rolora", "flora", "fedex", "flexlora", "hlora", "hetlora", "fedsa"} <= names
    assert {"lora_fair", "fedrand", "cellm", "fedsb", "selective", "smollm2"} <= names
