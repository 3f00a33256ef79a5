"""Ranks that clients prune inside a run (HetLoRA): who shrinks, what is sent and kept, stop and resume, refusals."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lowcomm.aggregate.lora import Adapter, HetLoRA
from lowcomm.aggregate.lora.hetlora import kept
from lowcomm.aggregate.lora.rule import pairs_of
from lowcomm.codec import Ans, Codec, ErrorFeedback, Fp32, Int4, Int8, Packed
from lowcomm.codec.base import State
from lowcomm.exchange.roll_call import call_roll
from lowcomm.hooks.rank_pruning import RankPruning, forget_rows
from lowcomm.island import Soap
from lowcomm.local import Objective, RankDecay, Scaffold
from lowcomm.state.cohort import Section
from lowcomm.state.spec import Clients
from lowcomm.trainer import train
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Delta, Payload, PayloadError, Round
from tests.run.test_lora_run import ranks_told, small, write_clients
from tests.support import lora_toy as toy
from tests.support import runs

FIRST = (4, 3, 2)
GAMMA = 0.75


def islands(
    gamma: float | None = GAMMA, strength: float = 3.0, codec: Codec | None = None, objective: Objective | None = None
) -> toy.Islands:
    """Three clients of ranks 4, 3 and 2 whose last rows decay."""
    rule = HetLoRA(rank=4, ranks=FIRST, gamma=gamma)
    models = [toy.tuned(toy.llama(), toy.lora(rule, ("q_proj", "v_proj", "down_proj"))) for _ in range(3)]
    decay = objective or RankDecay(strength=strength, gamma=gamma or GAMMA)
    return toy.Islands(models, rule, every=6, codec=codec, lr=0.02, clients=Clients(objective=decay))


def layers(rank: int, seed: int) -> list[Adapter]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(5, 7), (3, 9), (6, 2)]
    return [
        Adapter(a=torch.randn(rank, n, generator=g), b=torch.randn(m, rank, generator=g), scale=2.0) for m, n in shapes
    ]


@pytest.mark.parametrize("gamma", [0.99, 0.75, 0.4, 0.1])
@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_a_client_prunes_if_its_last_rows_carry_less_than_they_did(rank: int, gamma: float) -> None:
    rule, shrunk = HetLoRA(rank=8, gamma=gamma), 0
    for seed in range(20):
        after, before = layers(rank, seed), layers(rank, seed + 100)
        first = max(1, int(gamma * rank))
        sums = [
            sum(float(x.b[:, first:].norm()) * float(x.a[first:].norm()) for x in adapters)
            for adapters in (after, before)
        ]
        wanted = first if sums[0] < sums[1] else rank
        assert rule.next_rank(after, before) == wanted
        assert 1 <= wanted <= rank
        shrunk += wanted < rank
    assert (0 < shrunk < 20) == (rank > 1)


def test_ranks_only_fall_and_factors_moments_and_bytes_follow() -> None:
    run = islands()
    told: list[list[int]] = [list(FIRST)]
    sent: list[int] = []
    for _ in range(6):
        run.round()
        told.append(run.reports[-1].ranks)
        sent.append(sum(run.reports[-1].exchanged_bytes))
        assert run.sync.state.ranks == told[-1]
        for _ in range(2):  # moments of rows that are gone would move them in these steps
            for model, rank, first in zip(run.models, told[-1], FIRST, strict=True):
                for layer in toy.layers(model).values():
                    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                    assert not a[rank:].any() and not b[:, rank:].any()
                    assert bool(a[:rank].any(dim=1).all())
                    assert layer.scaling["default"] == 16.0 / first
            run.step()
    assert told[1] == list(FIRST)  # B was 0: nothing can become lighter
    for old, new in itertools.pairwise(told):
        assert all(n in (o, kept(o, GAMMA)) for o, n in zip(old, new, strict=True))
    assert sum(told[-1]) < sum(FIRST) and min(told[-1]) >= 1
    params = run.sync.replicas[0].params
    per_row = sum(4 * p.numel() // 4 for p in params.values())
    for ranks, total in zip(told[1:], sent, strict=True):
        assert 0 <= total - 2 * per_row * sum(ranks) <= 3 * 2 * 200  # headers, roll call, verdicts, digests
    assert sent[-1] < sent[0]
    assert f"ranks {' '.join(map(str, told[-1]))}; payload bytes sent " in run.reports[-1].notes[-1]


def test_the_aggregate_is_the_dense_statement_of_the_shrunk_ranks() -> None:
    run = islands()
    shares = [t / sum(run.tokens) for t in run.tokens]
    for _ in range(5):
        run.round()
        ranks, weights = run.sync.state.ranks, run.sync.weights()
        for pair in pairs_of(weights):
            a, b = torch.zeros_like(weights[pair.a]), torch.zeros_like(weights[pair.b])
            scales = [16.0 / first for first in FIRST]
            own = [(x[pair.a][:r], x[pair.b][:, :r]) for x, r in zip(run.trained, ranks, strict=True)]
            sizes = [
                p * float((s * y.double() @ x.double()).norm())
                for (x, y), s, p in zip(own, scales, shares, strict=True)
            ]
            for (x, y), s, size, r in zip(own, scales, sizes, ranks, strict=True):
                a[:r] += size / sum(sizes) * x
                b[:, :r] += size / sum(sizes) * y * s / 4.0
            torch.testing.assert_close(weights[pair.a], a, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(weights[pair.b], b, rtol=1e-4, atol=1e-6)
            for model, r, s in zip(run.sync.replicas, ranks, scales, strict=True):
                assert torch.equal(model.held[pair.a][:r], weights[pair.a][:r])
                torch.testing.assert_close(model.held[pair.b][:, :r], weights[pair.b][:, :r] * 4.0 / s)
    assert sum(run.sync.state.ranks) < sum(FIRST)


def test_while_nobody_prunes_it_is_the_rule_of_fixed_ranks() -> None:
    pruning, fixed = islands(strength=0.0), islands(gamma=None, strength=0.0)
    for run in (pruning, fixed):
        run.round()
    assert pruning.sync.state.ranks == list(FIRST) and fixed.sync.state.ranks == [] and fixed.reports[-1].ranks == []
    assert all(torch.equal(w, fixed.sync.weights()[n]) for n, w in pruning.sync.weights().items())
    assert sum(pruning.reports[-1].exchanged_bytes) < 0.8 * sum(fixed.reports[-1].exchanged_bytes)


@pytest.mark.parametrize(
    "codec", [Int8(exchange="gather"), Packed(first=Int4(), stage=Ans())], ids=lambda c: type(c).__name__
)
def test_other_codecs_send_the_rows_that_are_left(codec: Codec) -> None:
    run = islands(codec=codec)
    for _ in range(5):
        run.round()
    sent = [sum(r.exchanged_bytes) for r in run.reports]
    assert sum(run.sync.state.ranks) < sum(FIRST) and sent[-1] < sent[0]


def test_a_client_that_is_left_out_keeps_its_rank() -> None:
    run = islands()
    run.round()
    for _ in range(5):
        run.step()
    with torch.no_grad():
        next(iter(run.sync.replicas[1].params.values()))[0].fill_(float("nan"))
    run.round()
    assert list(run.reports[-1].dropped) == [1]
    assert run.sync.state.ranks[1] == FIRST[1] and run.sync.state.ranks[2] < FIRST[2]
    while run.sync.state.ranks[1] == FIRST[1]:
        run.round()
        assert run.sync.round < 8


@dataclass(frozen=True, kw_only=True)
class Spoilt(Fp32):
    """What island 2 sends in round 1 can't be used, which is seen when payloads are there."""

    def encode(self, delta: Delta, state: State, round: Round) -> tuple[Payload, State]:
        if (round.island, round.index) == (2, 1) and any(bool(d.any()) for d in delta.values()):
            raise PayloadError("spoilt")
        return super().encode(delta, state, round)


def test_a_client_whose_payload_was_no_good_keeps_its_rank() -> None:
    run = islands(codec=Spoilt())
    run.round()
    run.round()
    assert run.reports[-1].dropped == {2: "spoilt"}
    assert run.sync.state.ranks[2] == FIRST[2] and run.sync.state.ranks[1] < FIRST[1]
    run.round()
    assert run.sync.state.ranks[2] < FIRST[2]


@pytest.mark.parametrize(("told", "words"), [(5, "its rank is 5, it had 4"), (0, "rank is 0"), (float("nan"), "nan")])
def test_a_rank_that_can_not_be_is_left_out(told: Any, words: str) -> None:
    at, rule = Round(index=0, step=1, fragments=(0,), seed=0), HetLoRA(rank=4, gamma=GAMMA)
    arguments = (Simulated(3), rule, at, [1.0] * 3, [1.0] * 3, 0.5)
    hook = RankPruning(dataclasses.replace(rule, ranks=(4, 4, 2)), [], Simulated(3))
    section = Section(own=[[3.0], [told], [2.0]], otherwise=[[4.0], [4.0], [2.0]], refuse=hook.refuse)
    cohort = call_roll(*arguments, sections={"ranks": section})
    assert list(cohort.dropped) == [1] and words in cohort.dropped[1]
    assert cohort.sections["ranks"] == [[3], [4], [2]] and cohort.weights == [0.5, 0.0, 0.5]
    assert call_roll(*arguments, stop=False).sections == {}


def test_a_state_in_another_basis_starts_anew() -> None:
    """SOAP's moments are in the eigenbasis of its preconditioners, where rows can't be told apart."""
    layer, name = torch.nn.Linear(6, 4, bias=False), "m.q_proj.lora_A.default.weight"
    p = layer.weight
    adam, soap = torch.optim.AdamW([p]), Soap(lr=0.1).build(layer)
    for inner in (adam, soap):
        for _ in range(3):
            p.grad = torch.ones_like(p)
            inner.step()
        forget_rows(name, p, inner.state[p], 3)
    assert not adam.state[p]["exp_avg"][3:].any() and bool(adam.state[p]["exp_avg"][:3].all())
    assert float(adam.state[p]["step"]) == 3
    assert not soap.state[p]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clients(tmp_path_factory.mktemp("corpus"))


def test_a_run_stops_and_goes_on_at_a_shrunk_rank(tmp_path: Path, corpus: Path) -> None:
    whole, halves = (small(corpus, tmp_path / name, "hetlora") for name in ("whole", "halves"))
    stopped = dataclasses.replace(halves, checkpoint=dataclasses.replace(halves.checkpoint, stop_at_step=8))
    assert train(whole) == 0
    assert train(stopped) == 3
    assert list(ranks_told(tmp_path / "halves").values()) == [4, 3, 4, 2]
    assert train(dataclasses.replace(halves, resume=True)) == 0
    runs.assert_same(runs.outcome(tmp_path / "halves"), runs.outcome(tmp_path / "whole"))
    assert ranks_told(tmp_path / "halves") == ranks_told(tmp_path / "whole")


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.5, float("nan"), float("inf")])
def test_a_gamma_out_of_range(gamma: float) -> None:
    with pytest.raises(
        ConfigError, match=r"sync\.aggregator\.gamma = .* is not allowed: 0 < gamma < 1.*Fix: "
    ) as caught:
        HetLoRA(rank=4, gamma=gamma).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: islands(codec=ErrorFeedback(codec=Int8(exchange="gather"))),
            r"codec = ErrorFeedback .*ranks shrink",
        ),
        (lambda: islands(objective=RankDecay(gamma=0.5)), r"aggregator\.gamma = 0\.75 .*RankDecay's is 0\.5"),
        (lambda: islands(objective=Scaffold()), r"aggregator\.ranks is not allowed with clients\.objective"),
    ],
)
def test_parts_that_shrinking_ranks_do_not_go_with(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build()
    assert "\n" not in str(caught.value) and "Fix: " in str(caught.value)
