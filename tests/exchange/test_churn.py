"""Churn: who trains, mixes and counts while islands or links are lost, what is remembered of them, and MoDeST."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowcomm.aggregate import Mean
from lowcomm.codec import Fp32, Int4
from lowcomm.config import CheckpointConfig, EvalConfig
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.modest import Modest
from lowcomm.exchange.sampled_exchange import SampledExchange
from lowcomm.mixing import Game
from lowcomm.outer import SGD, Nesterov
from lowcomm.recipe import load
from lowcomm.report.load import load_run
from lowcomm.report.network import network_tiles
from lowcomm.schedule import Growing
from lowcomm.state.report import SyncReport
from lowcomm.state.spec import SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_islands, check_spec
from lowcomm.topology import Churn, Loss, Multigraph, Ring
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError
from tests.support import gossiping, toy
from tests.transport.test_collective import run_job


def own(sync: LocalSGD) -> Tensor:
    numel = sync.state.fragments[0].numel
    return torch.stack([sync.state.anchor_of(0, i).weights[:numel].clone() for i in range(len(sync.replicas))])


def run_rounds(sync: LocalSGD, first: int, last: int) -> None:
    for step in range(first * toy.EVERY, last * toy.EVERY):
        gossiping.train_step(sync, step)


def test_a_lost_island_stands_still_and_counts_for_nobody() -> None:
    churn = Churn(losses=(Loss(round=1, nodes=(2,), rounds=2),))
    sync, reports = gossiping.build(4, choice=Gossip(churn=churn)), list[SyncReport]()
    sync.listeners.append(reports.append)
    run_rounds(sync, 0, 1)
    before, tokens = own(sync), sync.replicas[2].tokens
    run_rounds(sync, 1, 3)
    after = own(sync)
    assert torch.equal(before[2], after[2]) and sync.replicas[2].tokens == tokens
    assert not any(torch.equal(before[k], after[k]) for k in (0, 1, 3))
    assert sync.state.exchange.absent() == {2}
    assert [r.health.components for r in reports if r.health is not None] == [1, 1, 1]
    assert [r.health.there for r in reports if r.health is not None] == [4, 3, 3]
    run_rounds(sync, 3, 4)  # it is back, and mixes with the others
    assert not torch.equal(own(sync)[2], after[2]) and not sync.state.exchange.absent()
    assert sync.replicas[2].tokens > tokens
    assert any("lost islands [2]" in note for r in reports for note in r.notes)


def test_a_cut_link_parts_a_ring_and_the_report_says_so() -> None:
    churn = Churn(losses=(Loss(round=0, links=((0, 1), (2, 3))),))
    sync, reports = gossiping.build(4, choice=Gossip(churn=churn)), list[SyncReport]()
    sync.listeners.append(reports.append)
    run_rounds(sync, 0, 2)
    assert reports[-1].health is not None
    assert (reports[-1].health.components, reports[-1].health.spectral_gap) == (2, 0.0)
    one = gossiping.build(4, choice=Gossip(churn=churn))
    for i, replica in enumerate(one.replicas):
        for p in replica.held.values():
            p.data.add_(float(i))
    one.sync((0,))
    anchors = own(one)
    torch.testing.assert_close(anchors[1] - anchors[0], torch.ones_like(anchors[0]) / 3)  # 0 mixes with 3, 1 with 2


def test_a_relay_passes_on_and_never_trains() -> None:
    sync = gossiping.build(4, choice=Gossip(churn=Churn(relays=(1,))))
    before = own(sync)[1]
    run_rounds(sync, 0, 2)
    gossiping.train_step(
        sync, 2 * toy.EVERY
    )  # a round that is not over: it takes part in the last exchange all the same
    sync.finish()
    assert sync.replicas[1].tokens == 0
    assert not torch.equal(own(sync)[1], before)
    assert sync.round == 3


def test_what_a_lost_neighbour_said_last_fades() -> None:
    """By hand, for an island of a ring of three that hears the third no more."""
    churn = Churn(losses=(Loss(round=1, nodes=(2,)),))
    sync = gossiping.build(3, choice=Gossip(memory=0.5, churn=churn))
    x: list[Tensor] = []
    for index in range(4):
        for i in (0, 1) if index else (0, 1, 2):
            for p in sync.replicas[i].held.values():
                p.data.add_(0.1 * (i + 1) * (index + 1))
        x.append(torch.stack([toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]))
        sync.sync((0,))
        if index:
            share = 0.5**index / 3
            expected = x[-1][0] + (x[-1][1] - x[-1][0]) / 3 + share * (x[0][2] - x[-1][0])
            torch.testing.assert_close(own(sync)[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("codec", [Fp32(), Int4()])
def test_an_edge_that_rests_is_remembered_and_nobody_waits_for_it(codec: Fp32 | Int4) -> None:
    class Counting(Simulated):
        """Counts messages by round."""

        seen: list[int]

        def swap_rows(self, rows: list[list[Tensor]], sizes: list[list[int]]) -> list[list[Tensor]]:  # type: ignore[override]
            self.seen.append(sum(row.numel() > 0 for mine in rows for row in mine))
            return super().swap_rows(rows, sizes)

    wire = Counting(4)
    wire.seen = []
    graph = Multigraph(overlay=Ring(), delay_s=(1.0, 1.0, 3.0, 3.0))
    sync = gossiping.build(4, codec=codec, transport=wire, choice=Gossip(topology=graph))
    run_rounds(sync, 0, 7)
    # edge 0-1 in every round, three slow ones in rounds 0, 3 and 6
    assert wire.seen == [8, 2, 2, 8, 2, 2, 8]


def test_all_of_a_sample_is_fedavg() -> None:
    sync = gossiping.build(4, choice=Modest(sample=4, aggregators=1))
    models = [toy.Net() for _ in range(4)]
    mean = Mean(by="uniform")
    shared = LocalSGD(models, [toy.adamw(m) for m in models], every=toy.EVERY, outer=SGD(lr=1.0), aggregator=mean)
    for step in range(3 * toy.EVERY):
        gossiping.train_step(sync, step)
        toy.train_step(shared, step)
    expected = shared.state.anchors[0][0].weights[: own(sync).shape[1]]
    for row in own(sync):
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


def test_only_samples_train_and_only_they_and_aggregators_send() -> None:
    """Messages at the interface: s models to a aggregators, a means to the next sample."""

    class Watched(Simulated):
        pairs: list[set[tuple[int, int]]]

        def swap_rows(self, rows: list[list[Tensor]], sizes: list[list[int]]) -> list[list[Tensor]]:  # type: ignore[override]
            self.pairs.append({(i, j) for i, mine in enumerate(rows) for j, row in enumerate(mine) if row.numel()})
            return super().swap_rows(rows, sizes)

    wire = Watched(8)
    wire.pairs = []
    sync = gossiping.build(8, transport=wire, choice=Modest(sample=3, aggregators=2))
    exchange = sync.state.exchange
    assert isinstance(exchange, SampledExchange)
    following = list[int]()
    for index in range(4):
        trained = exchange.order(index)[:3]
        tokens = [r.tokens for r in sync.replicas]
        run_rounds(sync, index, index + 1)
        assert [k for k in range(8) if sync.replicas[k].tokens > tokens[k]] == sorted(trained)
        following = exchange.order(index + 1)[:3]
        first, second = wire.pairs[-2:]
        assert first == {(i, j) for i in trained for j in following[:2] if i != j}
        assert second == {(i, j) for i in following[:2] for j in following if i != j}
        rows = own(sync)
        assert all(torch.equal(rows[k], rows[following[0]]) for k in following)
    sync.finish()
    torch.testing.assert_close(toy.flat(list(sync.weights().values())), own(sync)[following[0]])


@pytest.mark.long
def test_samples_go_on_without_a_process_that_dies(tmp_path: Path) -> None:
    results = run_job("samples", 4, tmp_path)
    assert sorted(results) == [0, 1, 2]
    for seen in results.values():
        assert seen["mean"] == results[0]["mean"]
        assert len(seen["weights"]) == 6
        assert all(row[3] == 0 for row in seen["weights"][2:])
        assert seen["tokens"] > 3 * toy.EVERY


def test_training_goes_on_with_four_of_five_islands_dead() -> None:
    churn = Churn(losses=(Loss(round=3, nodes=tuple(range(13))),))
    sync = gossiping.build(16, choice=Modest(sample=4, aggregators=2, churn=churn))

    def loss() -> float:
        named = sync.state.anchor_of(0, max(13, sync.state.exchange.holder or 0)).named  # type: ignore[attr-defined]
        model = toy.Net()
        model.load_state_dict({**dict(named), "again.weight": named["middle.weight"]}, strict=False)
        with torch.no_grad():
            return float(torch.stack([(model(x) - y).square().mean() for x, y in map(held, range(20))]).mean())

    def held(index: int) -> tuple[Tensor, Tensor]:
        return toy.batch(3, 10_000 + index)

    run_rounds(sync, 0, 4)
    before = loss()
    run_rounds(sync, 4, 30)
    assert loss() < 0.8 * before
    assert all(sync.replicas[k].steps == 30 * toy.EVERY for k in range(16))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exchange": Modest(sample=5)}, r"sync\.exchange\.sample = 5 is not allowed: 1 to 4"),
        ({"exchange": Modest(aggregators=0)}, r"sync\.exchange\.aggregators = 0"),
        ({"exchange": Modest(fraction=0.0)}, r"sync\.exchange\.fraction = 0\.0"),
        ({"exchange": Modest(churn=Churn(losses=(Loss(round=0, links=((0, 1),)),)))}, "no links"),
        ({"codec": Int4()}, r"sync\.codec = Int4 .*Modest.*use Fp32"),
        ({"outer": Nesterov()}, r"sync\.outer = .*Modest.*SGD\(lr=1\.0\)"),
        ({"schedule": Growing()}, r"sync\.schedule = Growing .*Modest.*EveryH"),
    ],
)
def test_what_does_not_go_with_samples_is_refused(changes: dict[str, object], words: str) -> None:
    spec = dataclasses.replace(SyncSpec(every=4, exchange=Modest(), outer=SGD(lr=1.0)), **changes)
    with pytest.raises(ConfigError, match=words):
        check_spec(spec, 64)
        check_islands(spec, 4, 1, ())


def test_a_game_is_for_runs_and_finds_no_help_in_strangers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exchange\.rule = Game .*loop of one's own.* Fix: use lowcomm train"):
        gossiping.build(3, choice=Gossip(rule=Game()))
    config = load("gossip.py:smoke")
    config = dataclasses.replace(
        config, islands=3, steps=8, transport="simulated", tensorboard=False, threads=1, run_dir=tmp_path,
        data=dataclasses.replace(config.data, seq_len=8, batch_size=1, validation_sequences=2), eval=EvalConfig(),
        sync=dataclasses.replace(config.sync, every=4, codec=Fp32(), exchange=Gossip(rule=Game())),
        checkpoint=CheckpointConfig(export=False),
    )  # fmt: skip
    assert train(config) == 0


def test_a_run_logs_components_and_gap(tmp_path: Path) -> None:
    config = load("gossip.py:smoke")
    churn = Churn(losses=(Loss(round=1, nodes=(1,), rounds=1),))
    config = dataclasses.replace(
        config, islands=4, steps=12, transport="simulated", batched=True, tensorboard=False, threads=1,
        run_dir=tmp_path,
        data=dataclasses.replace(config.data, seq_len=8, batch_size=1, validation_sequences=2), eval=EvalConfig(),
        sync=dataclasses.replace(config.sync, every=4, exchange=Gossip(topology=Ring(), churn=churn)),
        checkpoint=CheckpointConfig(export=False),
    )  # fmt: skip
    config = dataclasses.replace(config, eval=EvalConfig(directions=True))
    assert train(config) == 0
    tiles = {label: value for value, label in network_tiles(load_run(tmp_path))}
    assert tiles["connected parts of the network, at most"] == "1"
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    syncs = [x for x in lines if x["event"] == "sync" and x["island"] == 0]
    assert [x["components"] for x in syncs] == [1, 1, 1]
    assert syncs[0]["spectral_gap"] == syncs[2]["spectral_gap"] > syncs[1]["spectral_gap"] > 0
    assert any("lost islands [1]" in (x["note"] or "") for x in lines)
    (last,) = [x for x in lines if x["event"] == "eval"]
    assert abs(last["average_direction_sharpness"]) < 0.5 * last["val_loss"]
