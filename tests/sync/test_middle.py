"""In the middle of a phase: evaluation, checkpoints and reports see the global weights of that step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowcomm.config import EvalConfig
from lowcomm.run.finale import with_global_weights
from lowcomm.schedule import Schedule
from lowcomm.state.checkpoint import global_part
from lowcomm.sync import LocalSGD
from lowcomm.trainer import train
from tests.methods import SCHEDULES, name
from tests.support import runs, toy


def _model(sync: LocalSGD) -> Tensor:
    return toy.flat([sync.replicas[0].params[n] for n in sync.weights()])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_whoever_looks_between_two_steps_sees_the_global_weights_of_that_step(schedule: Schedule) -> None:
    """After a step with averaged gradients: what all islands hold; else what the last sync committed."""
    sync = toy.build(2, schedule=schedule)
    committed = {0: _model(sync)}
    outer = [view for (a,) in sync.state.anchors for view in a.params]
    sync.listeners.append(lambda _: committed.update({0: toy.flat(outer)}))
    order = [n for f in sync.state.fragments for n in f.names]
    for step in range(toy.STEPS):
        averages = sync.next_action.average_gradients
        toy.train_step(sync, step)
        own = _model(sync)
        if averages:
            committed[0] = toy.flat([sync.replicas[0].params[n] for n in order])
            assert torch.equal(own, toy.flat([sync.replicas[1].params[n] for n in sync.weights()]))
        with with_global_weights(sync.state):
            seen = toy.flat([sync.replicas[0].params[n] for n in order])
        assert torch.equal(seen, committed[0]), f"evaluation after step {step + 1}"
        assert torch.equal(toy.flat(list(sync.weights().values())), seen), f"report after step {step + 1}"
        tensors, _ = global_part(sync.state)
        saved = torch.cat([tensors[f"weights.{i}"] for i in range(len(sync.state.fragments))])
        assert torch.equal(saved, seen), f"checkpoint after step {step + 1}"
        assert torch.equal(_model(sync), own), "training goes on from the island's own weights"
    looked_at = toy.flat(list(sync.weights().values()))
    plain = toy.build(2, schedule=schedule)
    for step in range(toy.STEPS):
        toy.train_step(plain, step)
    assert torch.equal(looked_at, toy.flat(list(plain.weights().values())))


@pytest.mark.parametrize("kind", ["local", "ddp", "post_local", "streaming"])
def test_a_run_evaluates_once_where_it_is_due_and_its_loss_moves(kind: str, tmp_path: Path) -> None:
    """Every 4 of 12 or 13 steps; a round that began before the multiple and ends after it is looked at once."""
    corpus = runs.write_corpus(tmp_path)
    assert train(runs.variant(kind, corpus, tmp_path / "run", eval=EvalConfig(every=4))) == 0
    lines = [line for line in runs.metrics(tmp_path / "run") if line["event"] == "eval"]
    steps = {"local": [4, 8, 12], "ddp": [4, 8, 12], "post_local": [4, 9, 13], "streaming": [5, 9, 12]}[kind]
    assert [line["step"] for line in lines] == steps
    assert len({line["val_bpb"] for line in lines}) == len(lines)
