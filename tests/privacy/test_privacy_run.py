"""Runs with a privacy mechanism: reductions, processes against the simulation, resume, budget, refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lowcomm as lc
from lowcomm.aggregate import Aggregator, Mean
from lowcomm.aggregate.lora import FFA, FedIT
from lowcomm.codec import Codec, ErrorFeedback, Int8, LocalResidual, Rqm, TopK
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, TextFiles
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD, Nesterov
from lowcomm.privacy import AdaptiveClip, ClientGaussian, ExampleGaussian, Mechanism, Released, epsilon
from lowcomm.schedule import EveryH, EveryStep, Schedule, Streaming
from lowcomm.state.spec import SyncSpec
from lowcomm.sync.compatibility import check_spec
from lowcomm.trainer import train
from lowcomm.types import ConfigError, SyncError
from tests.support import runs
from tests.support.refusals import refused

RECIPE = """
from pathlib import Path
from tests.privacy.test_privacy_run import MECHANISMS, small

def clients():
    return small(Path({corpus!r}), None, MECHANISMS["clients"])

def examples():
    return small(Path({corpus!r}), None, MECHANISMS["examples"])
"""
MECHANISMS: dict[str, Mechanism] = {
    "clients": AdaptiveClip(clip=0.05, seed=5),
    "examples": ExampleGaussian(clip=0.5, noise_multiplier=2.0, seed=5),
}


def small(corpus: Path, run_dir: Path | None, privacy: Mechanism | None, **changes: Any) -> RunConfig:
    codec: Codec = ErrorFeedback(codec=Int8())
    base = RunConfig(
        islands=2,
        steps=9,
        threads=1,
        transport="simulated",
        device="cpu",
        run_dir=run_dir,
        tensorboard=False,
        data=DataConfig(source=TextFiles(glob=str(corpus / "*.txt")), seq_len=32, batch_size=2, validation_sequences=4),
        model=ModelConfig(preset="nano", tuning=LoRA(rank=2, train="B")),
        sync=SyncConfig(
            every=3, outer=SGD(lr=1.0), aggregator=FFA(rank=2, by="uniform"), codec=codec, quorum=1.0, privacy=privacy
        ),
        checkpoint=CheckpointConfig(every_rounds=1, keep=4, export=False),
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "private.py"
    path.write_text(RECIPE.format(corpus=str(corpus)), encoding="utf-8")
    return path


def without_guard(outcome: dict[str, Any]) -> dict[str, Any]:
    """What is trained; the handshake of a run with a mechanism has a few bytes more, and its islands hear no norms."""
    apart = ("/privacy", "/norms", "bytes_sent", "bytes_received")
    return {k: v for k, v in outcome.items() if not k.endswith(apart)}


@pytest.mark.parametrize("kind", [ClientGaussian, ExampleGaussian])
def test_without_noise_and_clip_it_is_the_run_without_privacy(
    tmp_path: Path, corpus: Path, kind: type[ClientGaussian] | type[ExampleGaussian]
) -> None:
    one = DataConfig(source=TextFiles(glob=str(corpus / "*.txt")), seq_len=32, batch_size=1, validation_sequences=4)
    for name, privacy in (("plain", None), ("off", kind(clip=1e30, noise_multiplier=0.0))):
        assert train(small(corpus, tmp_path / name, privacy, data=one)) == 0
    plain, off = (without_guard(runs.outcome(tmp_path / name)) for name in ("plain", "off"))
    runs.assert_same(plain, off)
    assert runs.summary(tmp_path / "off")["privacy"]["epsilon_total"] is None  # infinite
    assert runs.summary(tmp_path / "plain")["privacy"] is None


@pytest.mark.parametrize("name", MECHANISMS)
def test_processes_and_resumed_runs_give_the_simulations_bits(
    tmp_path: Path, corpus: Path, recipe_file: Path, name: str
) -> None:
    config = small(corpus, tmp_path / "whole", MECHANISMS[name])
    runs.check_same_bits(config, f"{recipe_file}:{name}", stop_at_step=5)
    assert runs.summary(tmp_path / "real")["privacy"] == runs.summary(tmp_path / "whole")["privacy"]


def guard_of(run_dir: Path, checkpoint: str, island: int = 0) -> dict[str, Any]:
    path = run_dir / "checkpoints" / checkpoint / f"island-{island:05d}" / "island.json"
    return json.loads(path.read_text(encoding="utf-8"))["privacy"]


def test_noise_is_the_systems_and_the_key_and_clip_are_kept(tmp_path: Path, corpus: Path) -> None:
    mechanism = AdaptiveClip(clip=0.05)
    stop = CheckpointConfig(every_rounds=1, keep=4, export=False, stop_at_step=5)
    for name in ("a", "b"):
        assert train(small(corpus, tmp_path / name, mechanism, checkpoint=stop)) == 3
    first = guard_of(tmp_path / "a", "000001")
    assert first["releases"] == 1 and first["learnt"]["clip"] != 0.05
    assert len({guard_of(tmp_path / n, "000001", k)["key"] for n in ("a", "b") for k in (0, 1)}) == 4
    assert train(small(corpus, tmp_path / "a", mechanism, resume=True)) == 0
    last = guard_of(tmp_path / "a", "000003")
    assert (last["key"], last["releases"]) == (first["key"], 3)
    told = runs.summary(tmp_path / "a")["privacy"]
    assert told["releases"] == 3
    assert told["epsilon_total"] == epsilon([Released(noise_multiplier=1.0, count=3)], 1e-5)
    assert told["epsilon_payload"] == epsilon([Released(noise_multiplier=2**-0.5, count=3)], 1e-5)
    syncs = [m for m in runs.metrics(tmp_path / "a") if m["event"] == "sync" and m["island"] == 0]
    assert [m["epsilon"] for m in syncs] == [told["epsilon_per_round"]] * 3
    assert [m["epsilon_total"] for m in syncs][-1] == told["epsilon_total"]
    assert syncs[0]["delta_norm"] == 0.05  # the clip: norms are nobody's business


@pytest.mark.parametrize(
    ("mechanism", "rounds"),
    [
        (ClientGaussian(clip=0.1, noise_multiplier=2.0, budget=3.4), 2),  # 2.0, 3.0, 3.7
        (ExampleGaussian(clip=0.5, noise_multiplier=2.0, budget=2.5), None),
    ],
)
def test_the_run_ends_before_the_round_that_would_exceed_the_budget(
    tmp_path: Path, corpus: Path, mechanism: Mechanism, rounds: int | None
) -> None:
    config = small(corpus, tmp_path / "run", mechanism, steps=600 if rounds is None else 9)
    if rounds is None:  # an epoch of few sequences, of which one may be seen once
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=20, seq_len=64))
    assert train(config) == 0
    summary = runs.summary(tmp_path / "run")
    spent = summary["privacy"]
    assert summary["status"] == "budget spent"
    assert 0 < spent["epsilon_total"] <= mechanism.budget
    if rounds is not None:
        assert (summary["rounds"], summary["steps"], spent["releases"]) == (rounds, 3 * rounds, rounds)
        assert epsilon([Released(noise_multiplier=2.0, count=rounds + 1)], 1e-5) > mechanism.budget  # pyright: ignore[reportOperatorIssue]
    else:
        assert 0 < summary["steps"] < 600 and summary["steps"] % 3 == 0
    assert any("budget" in (m["note"] or "") for m in runs.metrics(tmp_path / "run"))
    assert summary["val_loss"] is not None
    assert train(dataclasses.replace(config, resume=True)) == 0
    assert runs.summary(tmp_path / "run")["rounds"] == summary["rounds"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sync.aggregator.by", "tokens"], "sync.aggregator.by = 'tokens' is not allowed"),
        (["--sync.privacy.budget", "0"], "sync.privacy.budget = 0"),
        (["--sync.privacy.budget", "0.1"], "sync.privacy.budget = 0.1 is not allowed: 4.377 or more"),
        (["--sync.privacy.delta", "1"], "sync.privacy.delta = 1"),
        (["--sync.privacy.delta", "0"], "sync.privacy.delta = 0"),
        (["--sync.privacy.clip", "-1"], "sync.privacy.clip = -1"),
        (["--transport", "collective", "--island.size", "2"], "island.size = 2"),
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
    said = refused(f"{recipe_file}:clients", arguments, tmp_path / "new", capsys, monkeypatch)
    assert words in said and "Fix: " in said


def test_batches_larger_than_an_epoch_are_refused(tmp_path: Path, corpus: Path) -> None:
    config = small(corpus, tmp_path / "run", MECHANISMS["examples"])
    with pytest.raises(ConfigError, match=r"data\.batch_size = 5000 is not allowed"):
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=5000)))


UNIFORM = Mean(by="uniform")


def spec_of(privacy: Mechanism | None, rule: Aggregator, codec: Codec, schedule: Schedule) -> SyncSpec:
    outer = SGD(lr=1.0) if isinstance(rule, FedIT) else Nesterov()
    return SyncSpec(every=4, outer=outer, aggregator=rule, codec=codec, schedule=schedule, privacy=privacy)


@pytest.mark.parametrize(
    ("rule", "codec", "schedule", "words"),
    [
        (Mean(), Int8(), EveryH(), "sync.aggregator.by = 'tokens'"),
        (
            FedIT(rank=2, by="uniform"),
            Int8(exchange="gather"),
            EveryH(),
            "sync.aggregator = FedIT.*looks at single contributions",
        ),
        (UNIFORM, LocalResidual(codec=TopK()), EveryH(), "sync.codec = LocalResidual"),
        (UNIFORM, ErrorFeedback(codec=Rqm()), EveryH(), "sync.codec = Rqm"),
        (UNIFORM, Int8(), EveryStep(), "sync.schedule = EveryStep"),
        (UNIFORM, Int8(), Streaming(fragments=2), "sync.schedule = Streaming"),
    ],
)
def test_parts_that_break_the_guarantee_are_refused(
    rule: Mean | FedIT, codec: Codec, schedule: Schedule, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_spec(spec_of(ClientGaussian(), rule, codec, schedule))
    assert "Fix: " in str(caught.value)
    check_spec(spec_of(None, UNIFORM, codec, schedule))
    if not isinstance(codec, ErrorFeedback):
        check_spec(spec_of(ExampleGaussian(), rule, codec, schedule))  # what an island trained is private already
    check_spec(spec_of(ClientGaussian(), UNIFORM, ErrorFeedback(codec=TopK()), EveryH()))


def loop(**settings: Any) -> tuple[lc.LocalSGD, list[nn.Module]]:
    torch.manual_seed(0)
    models: list[nn.Module] = [nn.Linear(3, 2) for _ in range(2)]
    inners = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    values = {"every": 1, "aggregator": UNIFORM, "outer": SGD(lr=1.0), **settings}
    return lc.LocalSGD(models, inners, **values), models


def push(sync: lc.LocalSGD, models: Sequence[nn.Module], size: float) -> None:
    for model, replica in zip(models, sync.replicas, strict=True):
        for p in model.parameters():
            p.grad = torch.full_like(p, size)
        replica.inner.step()


def test_a_plain_loop_hides_norms_and_tokens_and_counts_failed_exchanges(monkeypatch: pytest.MonkeyPatch) -> None:
    sync, models = loop(privacy=ClientGaussian(clip=0.5, seed=2), quorum=1.0)
    reports: list[Any] = []
    sync.listeners.append(reports.append)
    sync.count_tokens(1000, 0)
    push(sync, models, 100.0)
    assert reports[0].delta_norms == [0.5, 0.5] and reports[0].weights == [0.5, 0.5]
    with monkeypatch.context() as patch, pytest.raises(SyncError):
        patch.setattr(sync.transport, "gather", lambda _: (_ for _ in ()).throw(SyncError("cut")))
        push(sync, models, 1.0)
    assert (sync.round, sync.state.privacy.releases) == (1, 2)  # its payload may have been seen
    push(sync, models, 1.0)
    assert (sync.round, sync.state.privacy.releases) == (2, 3)


def test_equal_deltas_of_a_release_get_equal_noise_and_others_do_not() -> None:
    sync, _ = loop(privacy=ClientGaussian(seed=2))
    one, other = torch.ones(4), torch.tensor([1.0, 1.0, 1.0, 1.0000001])
    guard = sync.state.privacy
    assert guard.seed(0, 3, [one]) == guard.seed(0, 3, [one.clone()])
    assert (
        len({guard.seed(0, 3, [one]), guard.seed(0, 4, [one]), guard.seed(1, 3, [one]), guard.seed(0, 3, [other])}) == 4
    )


def test_averaged_buffers_and_unlike_mechanisms_are_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    rules = {"*running*": "average", "*num_batches*": "local"}
    with pytest.raises(ConfigError, match=r"buffers .* averaged between islands without noise"):
        lc.LocalSGD([model], [inner], every=1, aggregator=UNIFORM, privacy=ClientGaussian(), buffers=rules)  # pyright: ignore[reportArgumentType]
