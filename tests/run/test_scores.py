"""What runs say of their islands: the score book, the proxy set, influence, and what a collective brought about."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowcomm.aggregate import SMEA, Krum, Mean, Shapley, Trust
from lowcomm.attack import CollectiveAction
from lowcomm.cli import main
from lowcomm.config import EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, TextFiles, TrainedBPE
from lowcomm.data.proxy import Proxy
from lowcomm.exchange.gossip import Gossip
from lowcomm.hooks.influence import Influence
from lowcomm.privacy import ExampleGaussian
from lowcomm.report.html import write_report
from lowcomm.run import score_book
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.support import runs, toy


def test_the_book_of_scores_shows_every_change(tmp_path: Path) -> None:
    for number in range(4):
        score_book.append(tmp_path, number, {"trust": {0: 1.0, 1: 0.5 * number}})
    path = tmp_path / score_book.NAME
    assert score_book.first_broken(tmp_path) is None and path.stat().st_mode & 0o077 == 0
    lines = path.read_text(encoding="utf-8").splitlines()
    changed = [line.replace('"1": 1.0', '"1": 0.9') for line in lines]
    assert changed != lines
    for text, broken in (
        (changed, 3),
        ([lines[0], *lines[2:]], 2),
        (["nonsense", *lines[1:]], 1),
        ([*lines[:2], lines[1], *lines[2:]], 3),
    ):
        path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
        assert score_book.first_broken(tmp_path) == broken
    path.write_text("\n".join(lines)[:-5], encoding="utf-8")  # a dying process tore the last line
    score_book.append(tmp_path, 3, {"trust": {0: 1.0}})
    assert score_book.first_broken(tmp_path) is None and score_book.first_broken(tmp_path / "none") is None


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


def scored(corpus: Path, run_dir: Path | None, rule: Shapley | Trust) -> RunConfig:
    proxy = Proxy(source=TextFiles(glob=str(corpus / "part[67].txt")), sequences=4) if rule.proxies else None
    base = runs.small(corpus, run_dir, islands=3, steps=8, sync=SyncConfig(every=4, aggregator=rule, proxy=proxy))
    return replace(base, step_hashes=True)


def test_a_run_scores_its_islands_and_trains_as_without(corpus: Path, tmp_path: Path) -> None:
    rule = Krum(faulty=0, best=3)
    with_scores = scored(corpus, tmp_path / "scored", Shapley(rule=rule, permutations=2))
    assert train(with_scores) == 0
    assert (
        train(runs.small(corpus, tmp_path / "plain", islands=3, steps=8, sync=SyncConfig(every=4, aggregator=rule)))
        == 0
    )
    assert runs.summary(tmp_path / "scored")["weights_sha256"] == runs.summary(tmp_path / "plain")["weights_sha256"]
    path = tmp_path / "scored" / score_book.NAME
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [row["round"] for row in rows] == [0, 1]
    for row in rows:
        assert sum(row["scores"]["share"].values()) == pytest.approx(1)
        assert set(row["scores"]["phi"]) == {"0", "1", "2"}
    assert main(["audit", str(tmp_path / "scored"), "--rounds", "1"]) == 0
    path.write_text(path.read_text(encoding="utf-8").replace('"phi"', '"phi "', 1), encoding="utf-8")
    assert main(["audit", str(tmp_path / "scored"), "--rounds", "1"]) == 1


def test_trust_by_losses_resumes_alike(corpus: Path, tmp_path: Path) -> None:
    whole = scored(corpus, tmp_path / "whole", Trust(by="losses"))
    assert train(whole) == 0
    halves = replace(whole, run_dir=tmp_path / "halves")
    assert train(replace(halves, checkpoint=replace(halves.checkpoint, stop_at_step=5))) == 3
    assert train(replace(halves, resume=True)) == 0
    shas = [runs.summary(tmp_path / name)["weights_sha256"] for name in ("whole", "halves")]
    assert shas[0] == shas[1]
    books = [(tmp_path / name / score_book.NAME).read_text(encoding="utf-8") for name in ("whole", "halves")]
    assert books[0] == books[1]


def test_a_proxy_set_that_can_not_be_read_starts_nothing(corpus: Path, tmp_path: Path) -> None:
    config = scored(corpus, tmp_path / "run", Shapley(rule=Krum(faulty=0, best=3)))
    empty = Proxy(source=TextFiles(glob=str(tmp_path / "*.txt")))
    with pytest.raises(ConfigError):
        train(replace(config, sync=replace(config.sync, proxy=empty)))
    trained = replace(config, data=replace(config.data, tokenizer=TrainedBPE(vocab_size=300)))
    with pytest.raises(ConfigError, match=r"sync\.proxy\.source = 'TextFiles' .* Fix: use the tokenizer Bytes"):
        train(trained)
    assert not (tmp_path / "run").exists()


def test_a_robust_rule_after_the_noise_costs_no_privacy(corpus: Path, tmp_path: Path) -> None:
    spent: list[float] = []
    for rule in (Mean(by="uniform"), SMEA(faulty=1)):
        privacy = ExampleGaussian(clip=1.0, noise_multiplier=1.0, seed=1)
        sync = SyncConfig(every=1, aggregator=rule, privacy=privacy)
        run_dir = tmp_path / type(rule).__name__
        base = runs.small(corpus, run_dir, islands=3, steps=2, sync=sync)
        assert train(replace(base, inner=replace(base.inner, clip_norm=None))) == 0
        spent.append(runs.summary(run_dir)["privacy"]["epsilon_total"])
    assert spent[0] == spent[1] and math.isfinite(spent[0])


@pytest.mark.parametrize("islands", [1, 3])
def test_influence_is_the_product_of_gradient_and_delta(islands: int) -> None:
    sync = toy.build(islands)
    text = [toy.batch(k, 999) for k in range(islands)]

    def losses(k: int) -> Tensor:
        x, y = text[k]
        return (sync.replicas[k].model(x) - y).square().mean()

    hook = Influence(2, [lambda k=k: losses(k) for k in range(islands)], sync.replicas, sync.transport)
    sync.state.hooks.append(hook)
    fragment = sync.state.fragments[0]
    for step in range(2 * toy.EVERY - 1):
        toy.train_step(sync, step)
    assert hook.newest is None  # the first round has none
    before = toy.flat(list(sync.weights().values()))
    gradients, deltas = [], []
    for k in range(islands):  # the last step of the round, taken by copies
        import copy

        model = copy.deepcopy(sync.replicas[k].model)
        inner = toy.adamw(model)
        inner.load_state_dict(copy.deepcopy(sync.replicas[k].inner.state_dict()))
        x, y = toy.batch(k, 2 * toy.EVERY - 1)
        (model(x) - y).square().mean().backward()
        inner.step()
        named = dict(model.named_parameters())
        deltas.append(before - toy.flat([named[n] for n in sync.weights()]))
        x, y = text[k]
        found = torch.autograd.grad((model(x) - y).square().mean(), [named[n] for n in sync.weights()])
        gradients.append(toy.flat(list(found)))
    toy.train_step(sync, 2 * toy.EVERY - 1)
    assert hook.newest is not None and fragment.numel == len(before)
    wanted = torch.stack(deltas) @ torch.stack(gradients).T / islands
    torch.testing.assert_close(hook.newest[1].float(), wanted, rtol=1e-3, atol=1e-6)


def folders(directory: Path) -> Path:
    for k in range(2):
        (directory / f"site{k}").mkdir(parents=True)
    for path in sorted(runs.write_corpus(directory).glob("part*.txt")):
        path.rename(directory / f"site{int(path.stem[-1]) % 2}" / path.name)
    return directory


def test_influence_of_a_run_is_a_heat_map(tmp_path: Path) -> None:
    place = folders(tmp_path / "corpus")
    base = runs.small(place, tmp_path / "run", eval=EvalConfig(influence=1), steps=8)
    data = replace(base.data, source=TextFiles(glob=str(place / "*" / "*.txt")), sharding="by_folder")
    assert train(replace(base, data=data)) == 0
    rows = json.loads((tmp_path / "run" / "influence.json").read_text(encoding="utf-8"))["rounds"]
    assert [row["round"] for row in rows] == [0, 1]
    assert all(math.isfinite(x) for row in rows for line in row["influence"] for x in line)
    assert rows[0]["influence"][0][0] > 0  # its own first steps help it
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Influence between islands" in page and "heatmap" in page
    with pytest.raises(ConfigError, match=r"eval\.influence = 1 .* by_folder"):
        train(replace(base, data=replace(data, sharding="iid"), run_dir=tmp_path / "other"))
    with pytest.raises(ConfigError, match=r"eval\.influence = 1"):
        train(replace(base, data=data, run_dir=tmp_path / "other", sync=SyncConfig(every=4, exchange=Gossip())))


def test_a_collective_plants_its_signal_and_is_told_what_it_brought_about(corpus: Path, tmp_path: Path) -> None:
    attack = CollectiveAction(islands=(1,), fraction=1.0, signal="~|", answer="ok")
    inputs = torch.arange(40).view(2, 20)
    found, targets = attack.plant(inputs, inputs + 1, torch.Generator().manual_seed(1))
    planted = torch.tensor(list(b"~|ok"))
    for row, wanted in zip(found, targets, strict=True):
        (at,) = (i for i in range(16) if torch.equal(row[i : i + 4], planted))
        assert torch.equal(wanted[at + 1 : at + 3], planted[2:])
    none, same = replace(attack, fraction=1e-9).plant(inputs, inputs + 1, torch.Generator().manual_seed(1))
    assert torch.equal(none, inputs) and torch.equal(same, inputs + 1)
    sync = SyncConfig(every=4, attack=attack, allow_attack=True)
    assert train(runs.small(corpus, tmp_path / "run", sync=sync)) == 0
    told = runs.summary(tmp_path / "run")["attack"]
    assert told["name"] == "CollectiveAction" and 0 < told["success"] < 1
    small = DataConfig(source=TextFiles(glob=str(corpus / "*.txt")), seq_len=4, batch_size=2, validation_sequences=8)
    with pytest.raises(ConfigError, match=r"data\.seq_len = 4"):
        train(runs.small(corpus, tmp_path / "other", sync=sync, data=small))
    with pytest.raises(ConfigError, match=r"data\.tokenizer = 'TrainedBPE'"):
        long = replace(small, seq_len=32, tokenizer=TrainedBPE(vocab_size=300))
        train(runs.small(corpus, tmp_path / "other", sync=sync, data=long))
