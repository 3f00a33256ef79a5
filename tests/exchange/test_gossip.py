"""Gossip: mixing weights, reductions, who is sent to, failures, resume, processes against the simulation."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowcomm as lc
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, PowerSGD, RandomK, Rqm, Sign, Threshold, TopK, TwoBit
from lowcomm.config import CheckpointConfig, EvalConfig
from lowcomm.exchange.gossip import Gossip
from lowcomm.exchange.neighbour_exchange import NeighbourExchange
from lowcomm.local import FedProx, Scaffold
from lowcomm.outer import SGD, Nesterov
from lowcomm.recipe import load
from lowcomm.sampling import FixedSize
from lowcomm.schedule import Adaptive, OneStepDelay
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_islands, check_spec
from lowcomm.topology import Complete, Ring, Topology
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, SyncError
from tests.methods import TOPOLOGIES, name
from tests.support import gossiping, toy
from tests.transport.test_collective import run_job

CODECS = [Fp32(), Int4(), TopK(chunk=64, k=8)]


def mean_anchor(sync: LocalSGD) -> Tensor:
    rows = [sync.state.anchor_of(0, i).weights[: sync.state.fragments[0].numel] for i in range(len(sync.replicas))]
    return torch.stack(rows).double().mean(dim=0)


def mean_local(sync: LocalSGD) -> Tensor:
    return torch.stack([toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]).double().mean(dim=0)


class Watched(Simulated):
    """Looks at something before messages cross."""

    look: Callable[[], Tensor]

    def __init__(self, islands: int) -> None:
        super().__init__(islands)
        self.seen: list[Tensor] = []

    def swap_rows(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        self.seen.append(self.look())
        return super().swap_rows(rows, sizes)


def test_all_with_all_is_fedavg_with_uniform_weights() -> None:
    sync = gossiping.build(4, Complete())
    models = [toy.Net() for _ in range(4)]
    mean = lc.aggregate.Mean(by="uniform")
    fedavg = LocalSGD(models, [toy.adamw(m) for m in models], every=toy.EVERY, outer=SGD(lr=1.0), aggregator=mean)
    for step in range(2 * toy.EVERY):
        toy.train_step(sync, step)
        toy.train_step(fedavg, step)
    for i in range(4):
        own, shared = sync.state.anchor_of(0, i).weights, fedavg.state.anchors[0][0].weights
        torch.testing.assert_close(own, shared, rtol=1e-5, atol=1e-6)  # sums in another order


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=name)
@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_mixing_keeps_the_mean_of_the_islands(topology: Topology, codec: Codec) -> None:
    """What is lost to a codec is lost to both ends alike."""
    if topology.remembers:
        pytest.skip("what an edge remembers is not what the other end has")
    wire = Watched(6)
    sync = gossiping.build(6, topology, codec, transport=wire)
    wire.look = lambda: mean_local(sync)
    for step in range(4 * toy.EVERY):
        toy.train_step(sync, step)
        if (step + 1) % toy.EVERY == 0:
            torch.testing.assert_close(mean_anchor(sync), wire.seen[-1], rtol=1e-5, atol=1e-6)
    assert len(wire.seen) == 4


def test_mixing_alone_brings_islands_together() -> None:
    """Without training the distance falls in every round, with a codec too."""
    for codec in (*CODECS, TwoBit(), Sign(), TopK(chunk=64, k=2)):
        sync = gossiping.build(6, Ring(), codec)
        for i in range(6):  # apart from the beginning
            for p in sync.replicas[i].held.values():
                p.data.add_(0.1 * i)
        spread: list[float] = []
        for _ in range(60):
            sync.sync((0,))
            spread.append(float(torch.stack([sync.state.anchor_of(0, i).weights for i in range(6)]).var(dim=0).sum()))
        assert spread[-1] < (0.5 if codec == TopK(chunk=64, k=2) else 1e-3) * spread[0], (codec, spread[::6])


class Spy(Simulated):
    """Keeps the size of every row, by sender and receiver."""

    def swap_rows(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        self.seen = {(i, j): row.numel() for i, mine in enumerate(rows) for j, row in enumerate(mine) if row.numel()}
        return super().swap_rows(rows, sizes)

    def gather(self, rows: Sequence[Tensor]) -> Tensor:
        self.gathers = getattr(self, "gathers", 0) + 1
        return super().gather(rows)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=name)
def test_nobody_but_neighbours_is_sent_to_and_nothing_gathered(topology: Topology) -> None:
    spy = Spy(6)
    sync = gossiping.build(6, topology, Int4(), transport=spy)
    gathers, sent = spy.gathers, list(spy.sent_bytes)
    for step in range(3 * toy.EVERY):
        toy.train_step(sync, step)
        if (step + 1) % toy.EVERY == 0:
            index = step // toy.EVERY
            pairs = {(k, j) for k in range(6) for j in topology.neighbours(index, k, 6, 5)}
            assert set(spy.seen) == pairs
            for k in range(6):
                sent[k] += sum(size for (i, _), size in spy.seen.items() if i == k)
            assert spy.sent_bytes == sent
    assert spy.gathers == gathers


def test_processes_give_the_simulations_bits_and_a_dead_neighbour_does_not_block(tmp_path: Path) -> None:
    """Four processes over gloo: every island's anchors, the mean and counted bytes; then one dies."""
    results = run_job("gossip", 4, tmp_path)
    assert sorted(results) == [0, 1, 2]
    for case in gossiping.CASES:
        simulated = gossiping.trajectory(gossiping.build_case(case))
        for rank, seen in results.items():
            assert seen[case][str(rank)] == simulated[str(rank)], case
    for rank, seen in results.items():  # at torch.distributed: neighbours of the round, and nobody else
        graphs = {"ring, fp32, D-SGD": 1, "one peer, two steps": 2, "multigraph": 1}
        for case, steps in graphs.items():
            choice = gossiping.CASES[case][0]
            assert isinstance(choice, Gossip)
            rounds = range(3 * steps)
            assert seen["messages"][case] == [j for t in rounds for j in choice.topology.neighbours(t, rank, 4, 5)]
    assert results[0]["dropped"] == results[2]["dropped"] == [[], [3], [3]]
    assert results[1]["dropped"] == [[], [], []]  # it has no edge to the dead one
    for seen in results.values():
        assert all(math.isclose(sum(row), 1) for row in seen["weights"])
        assert seen["mean"] == results[0]["mean"]
    assert results[0]["weights"][-1][3] == 0


class Deserted(Simulated):
    """Loses island 2 in its first swap, as one of its peers sees it."""

    def swap_present(
        self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]
    ) -> list[list[Tensor | None]]:
        self.lost = {2: "connection closed"}
        return [[None if k == 2 else row for k, row in enumerate(mine)] for mine in super().swap_present(rows, sizes)]


def test_a_neighbour_that_stops_with_everybody_does_not_cost_the_round() -> None:
    """All get a signal, and one has left before the others' swap: they keep the round pending, to be saved so."""
    for leaving in (False, True):
        sync = gossiping.build(4, Ring(), Int4(), transport=Deserted(4))
        sync.state.exchange.leaving = lambda leaving=leaving: leaving
        for step in range(toy.EVERY - 1):
            toy.train_step(sync, step)
        if leaving:
            local = [toy.flat(r.tensors(sync.state.fragments[0])) for r in sync.replicas]
            with pytest.raises(SyncError, match=r"as this one is about to\. Nothing was committed"):
                sync.sync((0,))
            assert (sync.round, sync.pending) == (0, (0,))
            for r, kept in zip(sync.replicas, local, strict=True):
                assert torch.equal(toy.flat(r.tensors(sync.state.fragments[0])), kept)
        else:
            toy.train_step(sync, toy.EVERY - 1)
            assert sync.round == 1


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_an_island_that_is_not_finite_takes_its_anchor_mixed_with_the_neighbours(codec: Codec) -> None:
    sync = gossiping.build(4, Ring(), codec)
    reports: list[lc.SyncReport] = []
    sync.listeners.append(reports.append)
    for step in range(2 * toy.EVERY - 1):
        toy.train_step(sync, step)
    with torch.no_grad():
        sync.replicas[1].held["first.weight"][0, 0] = math.nan
    toy.train_step(sync, 2 * toy.EVERY - 1)
    assert list(reports[-1].dropped) == [1]
    assert "not finite" in reports[-1].dropped[1]
    assert reports[-1].weights[1] == 0
    assert not sync.replicas[1].inner.state
    for replica in sync.replicas:
        assert all(bool(p.isfinite().all()) for p in replica.held.values())
    for step in range(2 * toy.EVERY, 3 * toy.EVERY):
        toy.train_step(sync, step)
    assert not reports[-1].dropped  # copies are still alike at both ends


class Torn(Simulated):
    """Flips a bit of what island 1 sends to island 2, once."""

    torn = False

    def swap_rows(self, rows: Sequence[Sequence[Tensor]], sizes: Sequence[Sequence[int]]) -> list[list[Tensor]]:
        came = super().swap_rows(rows, sizes)
        if self.torn:
            came[2][1] = came[2][1].clone()
            came[2][1][-3] ^= 4
            self.torn = False
        return came


def test_copies_that_differ_are_noticed_and_begin_anew_at_both_ends() -> None:
    wire = Torn(4)
    sync = gossiping.build(4, Ring(), Int4(), transport=wire)
    reports: list[lc.SyncReport] = []
    sync.listeners.append(reports.append)
    for step in range(5 * toy.EVERY):
        wire.torn = step == 2 * toy.EVERY - 1
        toy.train_step(sync, step)
    dropped = [dict(r.dropped) for r in reports]
    assert "checksum" in dropped[1][1]  # island 2 refuses the payload, island 1 does not know
    assert sorted(dropped[2]) == [1, 2]  # now both do
    assert "begin anew" in dropped[2][1]
    assert not dropped[3]
    assert not dropped[4]
    copies = sync.state.exchange
    assert isinstance(copies, NeighbourExchange)
    assert copies.talk.copies is not None
    for (_, k, j), sent in copies.talk.copies.sent.items():
        assert torch.equal(sent, copies.talk.copies.heard[0, j, k])


@pytest.mark.parametrize("case", gossiping.CASES)
def test_resume_inside_a_round_is_exact(case: str) -> None:
    whole, first = (gossiping.build_case(case) for _ in range(2))
    stop = 2 * toy.EVERY + 1
    for step in range(toy.STEPS):
        gossiping.train_step(whole, step)
        if step < stop:
            gossiping.train_step(first, step)
    shared, own = global_part(first.state), [island_part(first.state, i) for i in range(4)]
    copied = [({k: t.clone() for k, t in tensors.items()}, json.loads(json.dumps(v))) for tensors, v in [shared, *own]]
    second = gossiping.build_case(case)
    load_global(second.state, copied[0])
    for i in range(4):
        load_island(second.state, i, copied[i + 1])
    for step in range(stop, toy.STEPS):
        gossiping.train_step(second, step)
    for sync in (whole, second):
        sync.finish()
    assert gossiping.anchors(second) == gossiping.anchors(whole)
    if "overlapped" not in case:  # what was crossing when it stopped crosses again
        assert second.transport.sent_bytes == whole.transport.sent_bytes


def test_global_weights_are_the_mean_and_only_together() -> None:
    sync = gossiping.build(3, Ring())
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
    with pytest.raises(SyncError, match=r"each island has weights of its own.* Fix: call finish\(\)"):
        sync.weights()
    with pytest.raises(SyncError, match="gradients of islands with weights of their own"):
        sync.average_gradients()
    sync.finish()
    mean = mean_anchor(sync).float()
    torch.testing.assert_close(toy.flat(list(sync.weights().values())), mean, rtol=1e-6, atol=1e-7)
    for replica in sync.replicas:
        assert all(torch.equal(p, sync.weights()[n]) for n, p in replica.held.items())


def test_a_run_evaluates_and_exports_the_mean_and_resumes(tmp_path: Path) -> None:
    config = dataclasses.replace(
        load("gossip.py:smoke"), islands=4, steps=12, transport="simulated", tensorboard=False, threads=1,
        eval=EvalConfig(every=4), run_dir=tmp_path / "whole",
    )  # fmt: skip
    data = dataclasses.replace(config.data, seq_len=8, batch_size=1, validation_sequences=2)
    config = dataclasses.replace(config, data=data, sync=dataclasses.replace(config.sync, every=4))
    assert train(config) == 0
    stop = dataclasses.replace(
        config,
        run_dir=tmp_path / "stopped",
        eval=EvalConfig(),
        checkpoint=CheckpointConfig(stop_at_step=6, export=False),
    )
    assert train(stop) == 3
    assert json.loads((tmp_path / "stopped" / "summary.json").read_text(encoding="utf-8"))["weights_sha256"] is None
    resumed = dataclasses.replace(stop, resume=True, checkpoint=CheckpointConfig(export=False))
    assert train(resumed) == 0
    summaries = [json.loads((tmp_path / k / "summary.json").read_text(encoding="utf-8")) for k in ("whole", "stopped")]
    for key in ("weights_sha256", "val_loss", "consensus_distance"):
        assert summaries[0][key] == summaries[1][key], key
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evals = [x for x in lines if x["event"] == "eval"]
    assert len(evals) == 3
    assert all(x["consensus_distance"] > 0 for x in evals)
    assert any("spectral gap" in (x["note"] or "") for x in lines)
    from transformers import AutoModelForCausalLM

    from lowcomm.state.digest import sha256_weights

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "export")
    assert sha256_weights(dict(exported.named_parameters())) == summaries[0]["weights_sha256"]


def test_the_local_objective_pulls_to_each_islands_own_anchor() -> None:
    """Where an island is at its own anchor, a proximal term is no force."""
    models = [toy.Net() for _ in range(3)]
    inners = [toy.sgd(m) for m in models]
    objective = Clients(objective=FedProx(mu=10.0))
    sync = LocalSGD(models, inners, every=2, outer=SGD(lr=1.0), exchange=Gossip(), clients=objective)
    for i, replica in enumerate(sync.replicas):
        for p, anchor in zip(replica.tensors(sync.state.fragments[0]), sync.state.anchor_of(0, i).params, strict=True):
            p.data.add_(float(i))
            anchor.copy_(p.data)
            p.grad = torch.zeros_like(p)
        replica.inner.step()
        own = toy.flat(sync.state.anchor_of(0, i).params)
        assert torch.equal(toy.flat(replica.tensors(sync.state.fragments[0])), own)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": ErrorFeedback(codec=Int4())}, r"sync\.codec = ErrorFeedback .*Gossip.* Fix: unwrap it: Int4"),
        ({"codec": Threshold()}, "must know beforehand how many bytes"),
        ({"codec": PowerSGD(rank=1)}, "state is that of one receiver"),
        ({"codec": Sign(vote=True)}, "in a sum only"),
        ({"codec": RandomK(unbiased=True)}, "farther from the weights"),
        ({"codec": Rqm(clip=0.1)}, "Rqm is not allowed"),
        ({"schedule": OneStepDelay()}, "whole rounds"),
        ({"schedule": Adaptive(shortest=2, longest=8)}, "whole rounds"),
        ({"clients": Clients(sampling=FixedSize(count=2))}, "no island hears of all others"),
        ({"clients": Clients(objective=Scaffold())}, "use FedProx"),
        ({"exchange": Gossip(gamma=0.0)}, r"sync\.exchange\.gamma = 0\.0"),
        ({"exchange": Gossip(gamma=math.nan)}, r"sync\.exchange\.gamma = nan"),
    ],
)
def test_what_does_not_go_with_gossip_is_refused(changes: dict[str, object], words: str) -> None:
    spec = dataclasses.replace(SyncSpec(every=4, exchange=Gossip()), **changes)
    with pytest.raises(ConfigError, match=words):
        check_spec(spec, 64)
        check_islands(spec, 4, 1, ())


def test_several_ranks_and_averaged_buffers_are_refused() -> None:
    spec = SyncSpec(every=4, exchange=Gossip(), outer=Nesterov())
    with pytest.raises(ConfigError, match=r"island\.size = 2 .*Gossip"):
        check_islands(spec, 4, 2, ())
    with pytest.raises(ConfigError, match=r"buffers is not allowed .* running_mean .*'local'"):
        check_islands(spec, 4, 1, ("running_mean",))
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match="keep them local"):
        LocalSGD(
            [model], [toy.sgd(model)], every=2, exchange=Gossip(), buffers={"*.running_*": "average", "*": "local"}
        )
