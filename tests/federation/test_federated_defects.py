"""Defects that were found in other federated-learning systems, and the test that would see each of them here.

Of the aggregation of adapters:

- FedEx's residual is transposed for layers that are no Conv1D:
  test_lora_algebra.py::test_residual_goes_onto_the_weight_in_its_own_orientation, and in a round, on every layer type,
  test_lora_sync.py::test_exact_rules_are_exact_on_every_layer_type
- HLoRA ignores alpha / r for unequal ranks: test_lora_algebra.py::test_scale_of_unequal_ranks_counts
- FFA-LoRA freezes A before the adapters exist:
  test_federated_defects.py::test_ffa_freezes_a_that_exists_and_it_never_moves

Of means and optimizers:

- Weights of two nodes sum to 2/3: test_federated_defects.py::test_weights_sum_to_one_for_any_number_of_islands and
  test_federated_defects.py::test_two_islands_end_in_their_mean
- SCAFFOLD divides by K lr under Adam: test_federated_defects.py::test_scaffold_s_controls_are_gradients_under_adam
- FedAdagrad can't be reached for a typo: test_federated_defects.py::test_fedadagrad_is_what_runs
- FedAvg is weighted, FedOpt beside it is not:
  test_federated_defects.py::test_every_outer_optimizer_gets_the_weighted_mean

Of runs:

- Every client fails in every round, and the exit code is 0:
  test_federated_defects.py::test_a_run_whose_clients_all_fail_does_not_exit_with_0, and over Flower
  test_federation.py::test_when_all_clients_fail_the_run_fails
- The best round is picked on the test set: test_federated_defects.py::test_evaluation_picks_no_round
- A response template that is not found masks every label:
  test_chat.py::test_a_step_whose_targets_are_all_masked_is_an_error, and what is learnt of a conversation is
  test_chat.py::test_ids_are_those_of_transformers_and_answers_are_what_a_model_must_write

Of privacy:

- Noise is calibrated for equal weights, and the mean is weighted:
  test_federated_defects.py::test_noise_is_never_added_to_a_weighted_mean
- A Poisson sampler is accounted, the loader's runs: test_clients.py::test_poisson_is_amplified_and_a_fixed_size_is_not
- The classic Gaussian formula is used at epsilon > 1, or rounds are not composed:
  test_privacy.py::test_epsilon_is_that_of_the_pld_accountant
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from lowcomm.aggregate import Aggregator, Mean
from lowcomm.aggregate.lora import FFA
from lowcomm.cli import main
from lowcomm.config import EvalConfig
from lowcomm.hooks.control_variates import ControlVariates
from lowcomm.island import AdamW, InnerConfig, PlainIsland
from lowcomm.local import Scaffold
from lowcomm.model import LoRA
from lowcomm.outer import SGD, Outer
from lowcomm.privacy import ClientGaussian
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_spec
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.methods import AGGREGATORS, LORA_RULES, OUTERS, name
from tests.support import lora_toy, runs, toy

RULES: tuple[Aggregator, ...] = (*AGGREGATORS, Mean(by="bounded", most_tokens=5.0), *LORA_RULES)
FEDADAGRAD = """
from pathlib import Path
from dataclasses import replace
from lowcomm.outer import FedAdagrad
from tests.support.runs import small

def fedadagrad():
    base = small(Path({corpus!r}), None)
    return replace(base, sync=replace(base.sync, outer=FedAdagrad(lr=0.03)))
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return runs.write_corpus(tmp_path / "text")


def test_the_tests_that_are_named_above_exist() -> None:
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", __doc__ or "")
    here = Path(__file__).parents[1]
    missing = [f"{f}::{t}" for f, t in named if f"\ndef {t}(" not in next(here.rglob(f)).read_text(encoding="utf-8")]
    assert len(named) >= 16 and not missing


def test_ffa_freezes_a_that_exists_and_it_never_moves() -> None:
    """Frozen before the adapters are there, A would be trained like B."""
    models = [lora_toy.tuned(lora_toy.llama(), LoRA(rank=2, train="B")) for _ in range(2)]
    factors = {n: p for n, p in models[0].named_parameters() if ".lora_" in n}
    assert {n.partition(".lora_")[2][0] for n in factors} == {"A", "B"}
    assert all(p.requires_grad == (".lora_B." in n) for n, p in factors.items())
    before = {n: p.detach().clone() for n, p in factors.items()}
    islands = lora_toy.Islands(models, FFA(rank=2))
    islands.round()
    islands.round()
    assert all(torch.equal(before[n], p) == (".lora_A." in n) for n, p in factors.items())


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_weights_sum_to_one_for_any_number_of_islands(rule: Aggregator) -> None:
    for islands in range(1, 7):
        tokens = [3.0 * k + 1 for k in range(islands)]
        assert sum(rule.weights(tokens)) == pytest.approx(1, abs=1e-12)
        assert sum(rule.weights([*tokens, 0.0])) == pytest.approx(1, abs=1e-12)  # one was left out
        assert rule.weights([*tokens, 0.0])[-1] == 0


@pytest.mark.parametrize("left_out", [False, True], ids=["all there", "one left out"])
def test_two_islands_end_in_their_mean(left_out: bool) -> None:
    """A ring that weighs two nodes as if they were three keeps two thirds of the step, or of the weights."""
    sync = toy.build(3 if left_out else 2, outer=SGD(lr=1.0), every=100)
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
    local = [toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]
    if left_out:
        with torch.no_grad():
            sync.replicas[2].params["scale"].fill_(torch.nan)
    sync.sync((0,))
    wanted = (local[0] * 4 + local[1] * 5) / 9
    torch.testing.assert_close(toy.flat(list(sync.weights().values())), wanted, rtol=1e-5, atol=1e-6)


def test_scaffold_s_controls_are_gradients_under_adam() -> None:
    """(x - y) / (K lr) is the mean gradient for SGD only: under Adam it is of the size of 1."""
    models = [toy.Net() for _ in range(2)]
    inners = [toy.adamw(m) for m in models]
    sync = LocalSGD(models, inners, every=4, outer=SGD(lr=1.0), clients=Clients(objective=Scaffold()))
    fragment, x = sync.state.fragments[0], toy.flat(list(sync.weights().values()))
    raw = [torch.zeros_like(x) for _ in models]
    last = [torch.zeros_like(x) for _ in models]
    for step in range(4):
        for i, model in enumerate(models):
            inputs, targets = toy.batch(i, step)
            (model(inputs) - targets).square().mean().backward()
            last[i] = toy.flat(list(sync.replicas[i].params.values()))  # after three steps; the fourth ends in a sync
            raw[i] += toy.flat([p.grad for p in sync.replicas[i].params.values() if p.grad is not None]) / 4
            inners[i].step()
            inners[i].zero_grad()
    (hook,) = sync.state.hooks
    assert isinstance(hook, ControlVariates)
    for i, mean in enumerate(raw):
        own = toy.flat(list(fragment.views(hook.own[i][0]).values()))
        torch.testing.assert_close(own, mean, rtol=1e-5, atol=1e-7)
        by_weights = (x - last[i]) / (3 * 0.02)
        assert float((by_weights - mean).norm() / mean.norm()) > 1


def test_fedadagrad_is_what_runs(tmp_path: Path, corpus: Path) -> None:
    """From a recipe by the command line to the outer optimizer's state, which only Adagrad never lets decay."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text(FEDADAGRAD.format(corpus=str(corpus)), encoding="utf-8")
    run_dir = tmp_path / "run"
    assert main(["train", f"{recipe}:fedadagrad", "--run-dir", str(run_dir), "--sync.outer.tau", "0.01"]) == 0
    stored = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["sync"]["outer"]
    assert stored == {"type": "lowcomm.outer.fedadagrad.FedAdagrad", "lr": 0.03, "beta1": 0.0, "tau": 0.01}
    fed = next(outer for outer in OUTERS if type(outer).__name__ == "FedAdagrad")
    sync = toy.build(2, outer=fed)
    v: list[torch.Tensor] = []
    sync.listeners.append(
        lambda _: v.append(toy.flat([s["v"] for s in sync.state.anchors[0][0].optimizer.state.values()]))
    )
    deltas = _deltas(sync)
    for step in range(3 * toy.EVERY):
        toy.train_step(sync, step)
    total = sum((d.square() for d in deltas), start=torch.full_like(deltas[0], 1e-6))
    torch.testing.assert_close(v[-1], total)
    assert len(v) == 3 and bool((v[2] >= v[1]).all()) and bool((v[1] >= v[0]).all())


def _deltas(sync: LocalSGD) -> list[torch.Tensor]:
    """What the outer optimizer gets in each round, flat."""
    seen: list[torch.Tensor] = []
    held = sync.state.anchors[0][0].params
    sync.state.anchors[0][0].optimizer.register_step_pre_hook(
        lambda *_: seen.append(toy.flat([p.grad.clone() for p in held if p.grad is not None]))
    )
    return seen


@pytest.mark.parametrize("outer", OUTERS, ids=name)
def test_every_outer_optimizer_gets_the_weighted_mean(outer: Outer) -> None:
    """Islands train 4 and 5 examples per step: whatever steps on the Delta, it is the one that they weigh so."""
    sync = toy.build(2, outer=outer, every=100)
    deltas = _deltas(sync)
    start = toy.flat(list(sync.weights().values()))
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
    moved = [start - toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]
    sync.sync((0,))
    torch.testing.assert_close(deltas[0][: len(start)], (moved[0] * 4 + moved[1] * 5) / 9, rtol=1e-4, atol=1e-6)
    assert float((deltas[0][: len(start)] - (moved[0] + moved[1]) / 2).norm()) > 1e-3


def test_a_run_whose_clients_all_fail_does_not_exit_with_0(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = PlainIsland.update

    def broken(self: PlainIsland, step: int) -> None:
        with torch.no_grad():
            if step % 4 == 3:  # just before the sync, so that no loss shows it
                self.params[0].fill_(torch.nan)
        update(self, step)

    monkeypatch.setattr(PlainIsland, "update", broken)
    recipe = runs.write_recipe(tmp_path, corpus)
    assert main(["train", f"{recipe}:local", "--run-dir", str(tmp_path / "run")]) == 1
    assert runs.summary(tmp_path / "run")["status"] == "failed"


def test_evaluation_picks_no_round(tmp_path: Path, corpus: Path) -> None:
    """The weights at the end are those of the last round, though an earlier one was better on the held-out text."""
    config = runs.small(corpus, tmp_path / "once", inner=InnerConfig(optimizer=AdamW(lr=0.3), warmup_fraction=0.0))
    assert train(config) == 0
    often = dataclasses.replace(config, run_dir=tmp_path / "often", eval=EvalConfig(every=4))
    assert train(often) == 0
    losses = [line["val_loss"] for line in runs.metrics(tmp_path / "often") if line["event"] == "eval"]
    assert len(losses) == 3 and min(losses) < losses[-1]
    assert runs.summary(tmp_path / "often")["val_loss"] == losses[-1]
    for key in ("weights_sha256", "val_loss", "steps", "rounds"):
        assert runs.summary(tmp_path / "often")[key] == runs.summary(tmp_path / "once")[key]


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_noise_is_never_added_to_a_weighted_mean(rule: Aggregator) -> None:
    """A rule that client-level privacy takes weighs a client of 100 times the text like any other."""
    try:
        check_spec(SyncSpec(every=1, privacy=ClientGaussian(), aggregator=rule))
    except ConfigError as error:
        assert "Fix: " in str(error)
        assert rule != Mean(by="uniform")
    else:
        assert rule.weights([1.0, 100.0]) == [0.5, 0.5]
