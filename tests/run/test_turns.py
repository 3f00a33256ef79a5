"""Runs whose clients take turns on one model: the bits, logs and checkpoints of a model each, in memory or on disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lowcomm.aggregate.lora import FedIT, FedSA
from lowcomm.codec import ErrorFeedback, Shared, TopK
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import Iid
from lowcomm.local import Scaffold
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD
from lowcomm.sampling import FixedSize
from lowcomm.schedule import Streaming
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.support.runs import metrics, small, summary, write_corpus

TWO = FixedSize(count=2)
SYNCS: dict[str, SyncConfig] = {
    "feedback": SyncConfig(every=2, codec=ErrorFeedback(codec=TopK(chunk=64, k=8)), sampling=TWO),
    "scaffold": SyncConfig(every=2, outer=SGD(lr=1.0), objective=Scaffold(), sampling=TWO),
    "private factors": SyncConfig(every=2, outer=SGD(lr=1.0), aggregator=FedSA(rank=2), codec=Shared(), sampling=TWO),
    "fresh": SyncConfig(every=2, outer=SGD(lr=1.0), aggregator=FedIT(rank=2), sampling=TWO, fresh_inner=True),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def client_run(corpus: Path, run_dir: Path, sync: SyncConfig, **changes: Any) -> RunConfig:
    """Four clients, two of them in each of three rounds of two steps, with adapters."""
    base = small(corpus, run_dir, islands=4, steps=6, sync=sync)
    data = dataclasses.replace(base.data, sharding="by_file", seq_len=16, batch_size=1, validation_sequences=2)
    model = ModelConfig(preset="nano", width=32, tuning=LoRA(rank=2))
    quiet = CheckpointConfig(every_rounds=None, every_s=None, export=False)
    return dataclasses.replace(base, data=data, model=model, checkpoint=quiet, **changes)


def told(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of steps and rounds, without times; of steps only those of who trained."""
    keys = ("event", "island", "round", "step", "tokens", "loss", "bytes_sent", "bytes_received", "delta_norm")
    lines = [{k: line[k] for k in keys} for line in metrics(run_dir) if line["event"] in ("step", "sync")]
    return [line for line in lines if line["loss"] is not None or line["event"] == "sync"]


@pytest.mark.parametrize("kind", SYNCS)
def test_a_run_has_the_bits_of_a_model_each_and_goes_on_either_way(
    kind: str, corpus: Path, tmp_path: Path, long: bool
) -> None:
    """Stopped inside a round with turns on disk, it goes on with a model each, and the other way round."""
    whole = client_run(corpus, tmp_path / "whole", SYNCS[kind], turns="off")
    turns = client_run(corpus, tmp_path / "turns", SYNCS[kind], turns="on")
    assert (train(whole), train(turns)) == (0, 0)
    expected = summary(tmp_path / "whole")
    assert summary(tmp_path / "turns")["weights_sha256"] == expected["weights_sha256"]
    assert summary(tmp_path / "turns")["val_loss"] == expected["val_loss"]
    said, everything = told(tmp_path / "turns"), told(tmp_path / "whole")
    assert [line for line in everything if line in said] == said
    assert sum(line["event"] == "sync" for line in said) == 2 * 3  # of those two who were in a round
    assert sum(line["event"] == "step" for line in said) == sum(line["event"] == "step" for line in everything)
    stop = dataclasses.replace(turns.checkpoint, stop_at_step=3)
    ways: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "a": ({"turns": "on", "client_state": "disk"}, {"turns": "off"}),
        "b": ({"turns": "off"}, {"turns": "on", "client_state": "disk"}),
    }
    for name in ways if long else "ab"[list(SYNCS).index(kind) % 2]:
        first, then = ways[name]
        base = client_run(corpus, tmp_path / name, SYNCS[kind])
        assert train(dataclasses.replace(base, checkpoint=stop, **first)) == 3
        assert train(dataclasses.replace(base, resume=True, **then)) == 0
        found = summary(tmp_path / name)
        assert {k: found[k] for k in ("weights_sha256", "val_loss", "tokens", "bytes_sent", "bytes_received")} == {
            k: expected[k] for k in ("weights_sha256", "val_loss", "tokens", "bytes_sent", "bytes_received")
        }


def test_a_checkpoint_leaves_out_what_is_global(corpus: Path, tmp_path: Path) -> None:
    config = client_run(corpus, tmp_path / "run", SYNCS["feedback"], turns="on")
    checkpoint = dataclasses.replace(config.checkpoint, every_rounds=1, keep=4)
    assert train(dataclasses.replace(config, checkpoint=checkpoint)) == 0
    first = tmp_path / "run" / "checkpoints" / "000001"
    parts = [load_file(first / f"island-{k:05d}" / "island.safetensors") for k in range(4)]
    trained = [k for k, part in enumerate(parts) if any(n.startswith("codec.") for n in part)]
    assert len(trained) == 2
    assert not any(n.startswith("model.") for part in parts for n in part)


def test_every_client_is_judged_with_weights_of_its_own(corpus: Path, tmp_path: Path) -> None:
    """clients.json and personal adapters, of clients with private factors."""
    found: list[Any] = []
    for turns in ("on", "off"):
        evaluated = EvalConfig(clients=True)
        config = client_run(corpus, tmp_path / turns, SYNCS["private factors"], turns=turns, eval=evaluated)
        folders = dataclasses.replace(config.data, sharding="iid", partition=Iid())
        checkpoint = dataclasses.replace(config.checkpoint, export=True)
        assert train(dataclasses.replace(config, data=folders, checkpoint=checkpoint)) == 0
        personal = sorted((tmp_path / turns / "personal").glob("*/adapter_model.safetensors"))
        weights = [[(n, t.tolist()) for n, t in sorted(load_file(path).items())] for path in personal]
        found.append((json.loads((tmp_path / turns / "clients.json").read_text()), weights))
    assert found[0] == found[1]
    assert len(found[0][1]) >= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": "on", "transport": "collective"}, "processes of their own"),
        ({"turns": "on", "sync": SyncConfig(every=2, schedule=Streaming(fragments=2, delay=0))}, "begin every round"),
        ({"turns": "off", "client_state": "disk"}, "turns is off"),
        ({"turns": "always"}, "one of auto, on, off"),
        ({"client_state": "tape"}, "one of memory, disk"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str, corpus: Path, tmp_path: Path) -> None:
    base = client_run(corpus, tmp_path / "run", SYNCS["feedback"])
    with pytest.raises(ConfigError, match=message):
        train(dataclasses.replace(base, **changes))
    assert not (tmp_path / "run").exists()
