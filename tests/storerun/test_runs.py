"""Whole runs over a directory: members as threads that come and go."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from lowcomm.aggregate import Krum
from lowcomm.aggregate.lora import FFA, FedIT, FedSA, RoLoRA
from lowcomm.aggregate.lora.rule import LoraRule
from lowcomm.arrival import FedBuff, TurnStale
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, InTurn, LocalResidual, Shared
from lowcomm.config import CheckpointConfig, SyncConfig
from lowcomm.data import TextFiles
from lowcomm.exchange.store import Store
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import SGD, HeLoCo, Nesterov
from lowcomm.privacy import ExampleGaussian
from lowcomm.schedule import Streaming
from lowcomm.store import keys
from lowcomm.store.commit import Commit
from lowcomm.store.contribution import Header
from lowcomm.storerun.hands import Stepped
from lowcomm.storerun.joining import open_run
from lowcomm.storerun.plan import rules_of
from lowcomm.storerun.verify import Doubts, _load, _manifests, verify
from lowcomm.trainer import train
from tests.support.members import Lives, leave_without_a_word, make_member, make_run, store_config
from tests.support.runs import metrics, small, summary, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return write_corpus(tmp_path / "text")


def lives(tmp_path: Path, config: Any) -> Lives:
    make_run(tmp_path / "store", config)
    return Lives(tmp_path / "store", tmp_path)


def test_a_calm_run_is_the_run_of_fixed_islands(tmp_path: Path, corpus: Path) -> None:
    """Same blocks, same learning rates: only the order of a sum of two is left to chance, and a + b = b + a."""
    config = store_config(corpus)
    both = lives(tmp_path, config)
    both.start("a")
    both.start("b")
    assert both.end() == {"a": 0, "b": 0}
    fixed = small(corpus, tmp_path / "fixed", sync=dataclasses.replace(config.sync, exchange=None))
    train(fixed)
    found = [summary(tmp_path / name) for name in ("a", "b", "fixed")]
    assert found[0]["weights_sha256"] == found[1]["weights_sha256"] == found[2]["weights_sha256"]
    assert found[0]["val_loss"] == found[1]["val_loss"] == found[2]["val_loss"]
    lines: list[str] = []
    assert verify(open_run(str(tmp_path / "store")), lines.append) == 0, lines
    versions = [m for m in metrics(tmp_path / "a") if m["event"] == "version"]
    assert [v["members"] for v in versions[-3:]] == [2, 2, 2] and versions[-1]["tokens_done"] == 2 * 12 * 64
    _verify_what_is_odd(tmp_path / "store")
    (tmp_path / "store" / "commits" / f"{2:012d}").unlink()  # a hole in a history is not its end
    assert verify(open_run(str(tmp_path / "store")), lines.append) == 1
    assert lines[-1] == "version 3: commit 2 is missing, and commit 3 is there"


def _verify_what_is_odd(store: Path) -> None:
    """A snapshot that was finished when its other files were gone; commits of a machine that folds to other bits."""
    opened, lines = open_run(str(store)), list[str]()
    first = store / opened.run.snapshot.key
    torn = store / "snapshots" / f"{1:012d}-{'0' * 32}"
    torn.mkdir()
    for manifest in (first, *(store / "snapshots").glob("*/manifest.json")):
        if manifest.parent != torn:
            shutil.copy(manifest, torn)
            assert verify(opened, lines.append) == 0, lines
    first.with_name("state.json").rename(store / "kept")
    assert verify(opened, lines.append) == 1, "the first one is counted on"
    (store / "kept").rename(first.with_name("state.json"))
    shutil.rmtree(torn)
    shots = _manifests(opened, lines.append)
    state = _load(opened, shots[0][0], rules_of(opened.config, opened.run), lines.append)
    raw = opened.objects.get(keys.commit(0))
    assert state is not None and raw is not None
    odd = dataclasses.replace(Commit.read(raw), state="0" * len(state.digest)).write()
    doubts, said = Doubts(lines.append), f"version 0: commit 0 has the digest {'0' * 16}, the fold {state.digest[:16]}"
    assert doubts.refuted(state, odd) is None and doubts.open == [said]
    assert doubts.refuted(state, raw) is None and not doubts.open
    assert lines[-1] == f"{said}: later commits are made for the bits of the fold"
    assert [doubts.refuted(state, odd) for _ in range(3)] == [None, None, said]


@pytest.mark.parametrize(
    ("mode", "codec"),
    [("synchronous", ErrorFeedback(codec=Int4())), ("buffered", LocalResidual(codec=Int4()))],
)
def test_one_goes_without_a_word_and_another_joins(tmp_path: Path, corpus: Path, mode: Any, codec: Codec) -> None:
    sync = SyncConfig(
        every=2, outer=Nesterov(lr=0.5, momentum=0.3), codec=codec, exchange=Store(mode=mode, size=2, patience_s=0.5)
    )
    three = lives(tmp_path, store_config(corpus, islands=3, steps=24, sync=sync))
    first = three.start("a")
    dying = three.start("b")
    three.until(lambda: dying.chain.known is not None and dying.chain.known.version >= 4)
    leave_without_a_word(dying)
    three.until(lambda: "b" in three.codes or not three.threads[1].is_alive())
    three.start("c")
    three.threads[1].join()
    three.codes.pop("b", None)
    assert three.end() == {"a": 0, "c": 0}
    assert first.chain.known is not None and first.chain.known.next_block == 36 and not first.chain.known.returned
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "c")["weights_sha256"]
    assert verify(open_run(str(tmp_path / "store")), lambda _: None) == 0


def test_fragments_in_turn(tmp_path: Path, corpus: Path) -> None:
    sync = SyncConfig(
        every=4, outer=Nesterov(lr=0.7, momentum=0.5), codec=Fp32(), schedule=Streaming(fragments=2),
        exchange=Store(patience_s=2.0),
    )  # fmt: skip
    both = lives(tmp_path, store_config(corpus, sync=sync))
    both.start("a")
    both.start("b")
    assert both.end() == {"a": 0, "b": 0}
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "b")["weights_sha256"]


def test_a_mode_that_never_waits_with_fragments_in_turn(tmp_path: Path, corpus: Path) -> None:
    """A rule whose turn of stale Deltas is in the fold; contributions to later fragments say their own tokens."""
    sync = SyncConfig(
        every=4, outer=HeLoCo(lr=0.7, momentum=0.5), codec=Fp32(), schedule=Streaming(fragments=2),
        exchange=Store(rule=FedBuff(size=2, turn=TurnStale()), patience_s=1.0),
    )  # fmt: skip
    both = lives(tmp_path, store_config(corpus, sync=sync))
    both.start("a")
    both.start("b")
    assert both.end() == {"a": 0, "b": 0}
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "b")["weights_sha256"]
    assert verify(open_run(str(tmp_path / "store")), lambda _: None) == 0
    headers = [Header.read(path.read_bytes())[0] for path in (tmp_path / "store" / "deltas").rglob("*-*")]
    per_step = {h.tokens / h.steps for h in headers if h.steps}
    assert {h.fragment for h in headers if h.tokens} == {0, 1} and len(per_step) == 1


def test_a_stopped_member_leaves_and_the_export_is_that_of_the_chain(tmp_path: Path, corpus: Path) -> None:
    config = store_config(corpus, steps=24, checkpoint=CheckpointConfig(export=True))
    both = lives(tmp_path, config)
    stays = both.start("a")
    leaves = both.start("b")
    both.until(lambda: leaves.chain.known is not None and leaves.chain.known.version >= 2)
    leaves.hands.run.stop.signal = "SIGTERM"
    assert both.end() == {"a": 0, "b": 3}
    assert summary(tmp_path / "b")["status"] == "stopped" and summary(tmp_path / "a")["status"] == "done"
    assert (tmp_path / "a" / "export" / "model.safetensors").exists()
    assert stays.chain.known is not None and stays.chain.known.next_block == 12


def test_sites_with_text_of_their_own(tmp_path: Path, corpus: Path) -> None:
    """No leases: the run closes when so many tokens are done, and each site reads its own files."""
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(corpus.glob("*.txt"))[::2]:
        path.rename(other / path.name)
    config = store_config(corpus)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sharding="own"))
    both = lives(tmp_path, config)
    both.start("a")
    theirs = dataclasses.replace(config.data, source=TextFiles(glob=str(other / "*.txt")))
    both.start("b", data=theirs)
    assert both.end() == {"a": 0, "b": 0}
    a, b = (summary(tmp_path / name) for name in ("a", "b"))
    assert a["weights_sha256"] == b["weights_sha256"] and a["val_loss"] != b["val_loss"]
    assert a["store"]["tokens"] >= 2 * 12 * 64


@pytest.mark.parametrize(
    ("rule", "codec"),
    [(FedIT(rank=4), Fp32()), (FFA(rank=4), Fp32()), (RoLoRA(rank=4), InTurn()), (FedSA(rank=4), Shared())],
)
def test_adapters_travel_and_the_base_stays(tmp_path: Path, corpus: Path, rule: LoraRule, codec: Codec) -> None:
    model = ModelConfig(preset="nano", tuning=LoRA(rank=4, train="B" if isinstance(rule, FFA) else "AB"))
    sync = SyncConfig(every=4, outer=SGD(lr=1.0), aggregator=rule, codec=codec, exchange=Store(patience_s=2.0))
    config = store_config(corpus, model=model, sync=sync, checkpoint=CheckpointConfig(export=True))
    both = lives(tmp_path, config)
    both.start("a")
    both.start("b")
    assert both.end() == {"a": 0, "b": 0}
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "b")["weights_sha256"]
    assert (tmp_path / "a" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "a" / "personal").exists() == isinstance(rule, FedSA)


def test_a_robust_rule_sees_each_contribution(tmp_path: Path, corpus: Path) -> None:
    sync = SyncConfig(every=4, aggregator=Krum(faulty=0), exchange=Store(patience_s=2.0), outer=SGD(lr=1.0))
    three = lives(tmp_path, store_config(corpus, islands=3, sync=sync))
    for name in "abc":
        three.start(name)
    assert three.end() == {"a": 0, "b": 0, "c": 0}
    assert len({summary(tmp_path / name)["weights_sha256"] for name in "abc"}) == 1


def test_a_loss_that_is_no_number_costs_its_own_round(tmp_path: Path, corpus: Path) -> None:
    """The island comes back as somebody new with the global weights, and its blocks are trained all the same."""
    sync = SyncConfig(every=4, outer=Nesterov(lr=0.7, momentum=0.5), exchange=Store(patience_s=0.5))
    both = lives(tmp_path, store_config(corpus, steps=24, sync=sync))
    good = both.start("a")
    bad = make_member(tmp_path / "store", tmp_path / "b", "b")
    step, steps = bad.hands.step, itertools.count()

    def poisoned(block: int | None, number: int, lr_step: int) -> Stepped:
        done = step(block, number, lr_step)
        return Stepped(loss=math.nan, tokens=0) if next(steps) == 5 else done

    bad.hands.step = poisoned
    both.begin("b", bad)
    assert both.end() == {"a": 0, "b": 0}
    assert good.chain.known is not None and good.chain.known.next_block == 12
    notes = [m["note"] for m in metrics(tmp_path / "b") if m["note"]]
    assert any("nan: the work since version" in note for note in notes)
    assert sum("healed at version" in note for note in notes) == 2
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "b")["weights_sha256"]


@pytest.mark.long
def test_a_site_whose_privacy_budget_is_spent_trains_no_more(tmp_path: Path, corpus: Path) -> None:
    private = ExampleGaussian(clip=1.0, noise_multiplier=1.0, budget=4.6)
    sync = SyncConfig(every=2, outer=SGD(lr=1.0), privacy=private, exchange=Store(patience_s=0.5))
    config = store_config(corpus, islands=1, steps=4000, sync=sync)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, sharding="own"))
    one = lives(tmp_path, config)
    one.start("a")
    assert one.end() == {"a": 0}
    spent = summary(tmp_path / "a")["privacy"]
    assert 0 < spent["epsilon_total"] <= 4.6 and summary(tmp_path / "a")["steps"] < 4000
