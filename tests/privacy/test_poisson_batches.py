"""Example-level privacy with Poisson sampled batches: the sampler, the island, the accountant, runs, refusals."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import dp_accounting
import dp_accounting.pld
import numpy as np
import pytest
import torch

from lowcomm.aggregate import Mean
from lowcomm.cli import main
from lowcomm.config import EvalConfig, RunConfig, SyncConfig
from lowcomm.data import Iid, build_data
from lowcomm.data.poisson import PoissonShard
from lowcomm.data.windows import TextWindows, WindowShard
from lowcomm.island import InnerConfig, PlainIsland, PrivateIsland
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import ExampleGaussian, Released, epsilon
from lowcomm.privacy.noise import add_noise, clip_to, generator_of
from lowcomm.run.privacy_spent import Counts, Ledger
from lowcomm.trainer import train
from lowcomm.types import CheckpointError, ConfigError
from tests.support import runs

POISSON = ExampleGaussian(clip=0.5, noise_multiplier=2.0, seed=5, batches="poisson")
RECIPE = """
from pathlib import Path
from tests.privacy.test_poisson_batches import small

def poisson():
    return small(Path({corpus!r}), None)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "poisson.py"
    path.write_text(RECIPE.format(corpus=str(corpus)), encoding="utf-8")
    return path


def windows_of(part: int = 0, parts: int = 1, batch_size: int = 4, windows: int = 40) -> WindowShard:
    text = TextWindows(np.arange(windows * 8 + 1, dtype=np.int32), 8)
    return WindowShard(text, seq_len=8, batch_size=batch_size, part=part, parts=parts, seeds=(3,), identity={"seed": 3})


def shard(key: int = 0, part: int = 0, parts: int = 1, batch_size: int = 4) -> PoissonShard:
    return windows_of(part, parts, batch_size).by_chance(lambda t: generator_of((key << 64) + t))


def drawn(of: PoissonShard | WindowShard) -> list[int]:
    """Numbers of the windows in the next batch."""
    inputs, targets = of.next_batch()
    assert inputs.shape == targets.shape == (len(inputs), 8) and inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    return (inputs[:, 0] // 8).tolist()


def test_each_window_is_drawn_alike_and_alone() -> None:
    """Frequencies of windows and of pairs are q and q^2; sizes are binomial; an empty batch comes up."""
    one, times = shard(), 3000
    seen = np.zeros((times, 40), dtype=bool)
    for t in range(times):
        seen[t, drawn(one)] = True
    q = 4 / 40
    assert one.chance == q
    per_window = seen.mean(axis=0)
    assert abs(per_window - q).max() < 5 * math.sqrt(q * (1 - q) / times)
    both = (seen.T.astype(float) @ seen) / times
    off = both[~np.eye(40, dtype=bool)]
    assert abs(off - q * q).max() < 6 * math.sqrt(q * q / times)
    sizes = seen.sum(axis=1)
    assert sizes.min() == 0 and abs(sizes.var() - 40 * q * (1 - q)) < 0.3
    again = (seen[1:] & seen[:-1]).mean()
    assert abs(again - q * q) < 0.003  # nor does a batch depend on the one before


def test_islands_keep_windows_of_their_own_and_keys_draw_apart() -> None:
    own = [set[int](), set[int]()]
    for part in (0, 1):
        one = shard(part=part, parts=2)
        for _ in range(300):
            own[part] |= set(drawn(one))
    assert not own[0] & own[1] and len(own[0]) == len(own[1]) == 20
    a, b, c = shard(1), shard(1), shard(2)
    assert [drawn(a) for _ in range(5)] == [drawn(b) for _ in range(5)] != [drawn(c) for _ in range(5)]


def test_all_with_chance_one_is_the_fixed_batch() -> None:
    """batch_size = windows: the first epoch of fixed batches, in its order."""
    fixed, by_chance = windows_of(batch_size=40), shard(batch_size=40)
    assert drawn(fixed) == drawn(by_chance)
    assert by_chance.chance == 1 and sorted(drawn(by_chance)) == list(range(40))


def test_a_position_is_the_number_of_draws() -> None:
    whole = shard(7)
    batches = [drawn(whole) for _ in range(6)]
    first, second = shard(7), shard(7)
    for _ in range(3):
        drawn(first)
    second.load_state_dict(first.state_dict())
    assert [drawn(second) for _ in range(3)] == batches[3:]
    assert second.state_dict() == whole.state_dict() and second.tokens == 8 * sum(map(len, batches))
    state = first.state_dict()
    wrong = [{**state, "draws": -1}, {**state, "batch_size": 5}, {**state, "seed": 4}, windows_of().state_dict()]
    for bad in wrong:
        with pytest.raises(CheckpointError, match="data position"):
            second.load_state_dict(bad)
    with pytest.raises(CheckpointError, match="data position"):
        windows_of().load_state_dict(state)


def island(clip: float, noise: float, expected: int | None) -> PrivateIsland:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 11))
    made = PrivateIsland(
        model,
        InnerConfig(),
        steps=4,
        seed=0,
        losses=lambda m, x, y: torch.nn.functional.cross_entropy(m(x).flatten(0, 1), y.flatten(), reduction="none"),
    )
    made.clip_each = lambda tensors: clip_to(tensors, clip)
    made.add_noise = lambda tensors: add_noise(tensors, noise * clip, 7)
    made.expected = expected
    return made


def gradient(of: PlainIsland) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in of.params if p.grad is not None])


def test_an_empty_batch_adds_noise_alone_and_sums_are_over_the_expected_number() -> None:
    ids = torch.arange(24).view(4, 6) % 11
    three, none = [(ids[:3], (ids[:3] + 1) % 11)], [(ids[:0], ids[:0])]
    of_three, counted = island(0.05, 0.0, 8), island(0.05, 0.0, None)
    loss = of_three.backward(three)
    assert loss == pytest.approx(counted.backward(three) * 3 / 8)
    torch.testing.assert_close(gradient(of_three), gradient(counted) * (3 / 8))
    silent, noisy = island(0.05, 0.0, 8), island(0.05, 3.0, 8)
    assert silent.backward(none) == 0 and not gradient(silent).any()
    assert noisy.backward(none) == 0
    noise = [torch.zeros_like(p) for p in noisy.params]
    add_noise(noise, 3.0 * 0.05, 7)
    torch.testing.assert_close(gradient(noisy), torch.cat([n.flatten() for n in noise]) / 8)
    assert [i.reported_tokens(b) for i in (of_three, noisy) for b in (three, none)] == [48] * 4


def small(corpus: Path, run_dir: Path | None, **changes: Any) -> RunConfig:
    """One sequence per step on average: more than a third of the batches are empty."""
    sync = SyncConfig(every=3, outer=SGD(lr=1.0), aggregator=Mean(), privacy=POISSON)
    model = ModelConfig(preset="nano", tuning=LoRA(rank=2))
    base = runs.small(corpus, run_dir, sync=sync, model=model)
    base = dataclasses.replace(base, data=dataclasses.replace(base.data, batch_size=1))
    return dataclasses.replace(base, **changes)


def test_processes_and_resumed_runs_give_the_simulations_bits(tmp_path: Path, corpus: Path, recipe_file: Path) -> None:
    config = small(corpus, tmp_path / "whole")
    whole = runs.check_same_bits(config, f"{recipe_file}:poisson", stop_at_step=5)
    states = [value for key, value in whole.items() if key.endswith("/data")]
    assert [s["draws"] for s in states] == [12, 12] and len({s["tokens"] for s in states}) == 2
    assert runs.summary(tmp_path / "whole")["tokens"] == 2 * 12 * 32  # what is told of them
    # with the system's randomness the key of the checkpoint goes on, and another run draws other batches
    own = dataclasses.replace(config.sync, privacy=dataclasses.replace(POISSON, seed=None))
    for name in ("a", "b"):
        assert train(dataclasses.replace(config, sync=own, run_dir=tmp_path / name)) == 0
    first, second = (runs.outcome(tmp_path / n) for n in ("a", "b"))
    assert first["weights_sha256"] != second["weights_sha256"]


def test_epsilon_is_that_of_the_sampler_that_ran(tmp_path: Path, corpus: Path) -> None:
    config = small(corpus, tmp_path / "run")
    assert train(config) == 0
    spent = runs.summary(tmp_path / "run")["privacy"]
    data = build_data(config.data, 2, 0)
    islands = [data.shard(k) for k in range(2)]
    assert all(isinstance(s, WindowShard) for s in islands)
    q = 1 / min(s.windows_per_epoch for s in islands if isinstance(s, WindowShard))
    assert spent["epsilon_total"] == epsilon([Released(noise_multiplier=2.0, count=12, probability=q)], 1e-5)
    assert spent["epsilon_per_round"] == epsilon([Released(noise_multiplier=2.0, count=3, probability=q)], 1e-5)
    accountant = dp_accounting.pld.PLDAccountant()
    accountant.compose(dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(2.0)), 12)
    assert spent["epsilon_total"] == pytest.approx(accountant.get_epsilon(1e-5), rel=0.005)
    epochs = dataclasses.replace(config.sync, privacy=dataclasses.replace(POISSON, batches="epochs"))
    assert train(dataclasses.replace(config, sync=epochs, run_dir=tmp_path / "epochs")) == 0
    assert 0 < spent["epsilon_total"] < runs.summary(tmp_path / "epochs")["privacy"]["epsilon_total"]
    full = ExampleGaussian(noise_multiplier=2.0, batches="poisson", budget=spent["epsilon_total"] * 0.99)
    short = dataclasses.replace(config, run_dir=tmp_path / "short", sync=dataclasses.replace(config.sync, privacy=full))
    assert train(short) == 0
    ended = runs.summary(tmp_path / "short")
    assert (ended["status"], ended["steps"]) == ("budget spent", 9)


def test_the_island_with_the_fewest_sequences_is_protected_least() -> None:
    ledger = Ledger(mechanism=POISSON, per_step=2, windows=(50, 20, 40))
    assert ledger.released(Counts(releases=0, steps=7)) == [Released(noise_multiplier=2.0, count=7, probability=0.1)]


def test_membership_asks_about_what_was_drawn(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the baselines train without noise, on fixed batches."""
    asked: list[PoissonShard | WindowShard] = []

    def noted(shard: PoissonShard | WindowShard, batches: int, sequences: int) -> list[Any]:
        asked.append(shard)
        return [batch for _ in range(batches) if len((batch := shard.next_batch())[0])]

    monkeypatch.setattr("lowcomm.federated.trained_batches", noted)
    config = small(corpus, tmp_path / "run", eval=EvalConfig(clients=True, membership=True, baselines=True))
    data = dataclasses.replace(config.data, partition=Iid(), validation_fraction=0.3)
    assert train(dataclasses.replace(config, data=data)) == 0
    assert [type(s) for s in asked] == [PoissonShard, PoissonShard]
    last = runs.outcome(tmp_path / "run")
    trained = [last[f"island-0000{k}/island.json/data"]["tokens"] for k in range(2)]
    assert [s.tokens for s in asked] == trained


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--inner.accumulation", "2"], "inner.accumulation = 2 is not allowed: 1 with Poisson batches"),
        (["--data.batch-size", "5000"], "data.batch_size = 5000 is not allowed"),
        (["--sync.privacy.budget", "0.0001"], "sync.privacy.budget = 0.0001"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, recipe_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code = main(["train", f"{recipe_file}:poisson", "--run-dir", str(tmp_path / "new"), *arguments])
    error = capsys.readouterr().err
    assert code == 2 and words in error and "Fix: " in error
    assert not (tmp_path / "new").exists()


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sync\.privacy\.batches = 'loader'"):
        ExampleGaussian(batches="loader").check()  # pyright: ignore[reportArgumentType]
