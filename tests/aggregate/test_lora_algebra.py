"""The LoRA rules against the dense target sum_k p_k s_k B_k A_k."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowcomm.aggregate import Context
from lowcomm.aggregate.lora import (
    FFA,
    Adapter,
    Cellm,
    FedEx,
    FedIT,
    FedRand,
    FedSA,
    FedSB,
    FlexLoRA,
    FLoRA,
    HetLoRA,
    HLoRA,
    LoraFair,
    LoraRule,
    Product,
    RoLoRA,
    distances,
    target,
)
from lowcomm.aggregate.lora.hetlora import pruned, sparsity_weights, tail
from lowcomm.aggregate.lora.svd import truncated
from lowcomm.types import ConfigError, Contribution, Round
from tests.methods import LORA_RULES, name

EXACT = 1e-5


def at(index: int = 0) -> Round:
    return Round(index=index, step=8, fragments=(0,), seed=1234 + index)


def clients(
    rule: LoraRule, ranks: list[int], out: int, into: int, seed: int = 0, common: str = ""
) -> tuple[list[Adapter], Adapter]:
    """Random adapters, and the global factors before; `common`: factors that no client moved."""
    generator = torch.Generator().manual_seed(seed)

    def draw(rank: int) -> tuple[Tensor, Tensor]:
        return torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)

    a, b = draw(rule.rank)
    made = []
    for r in ranks:
        own_a, own_b = draw(r)
        own_a, own_b = (a if "A" in common else own_a), (b if "B" in common else own_b)
        made.append(Adapter(a=own_a, b=own_b, scale=rule.scale_of(r)))
    return made, Adapter(a=a, b=b, scale=rule.scale)


def dense(adapters: list[Adapter], weights: list[float]) -> Tensor:
    """The target in fp64, the slow way."""
    return sum(
        (p * x.scale * (x.b.double() @ x.a.double()) for x, p in zip(adapters, weights, strict=True)),
        start=torch.zeros(adapters[0].b.shape[0], adapters[0].a.shape[1], dtype=torch.float64),
    )


def made_by(server: Adapter, residual: Product | None) -> Tensor:
    got = server.scale * (server.b.double() @ server.a.double())
    return got if residual is None else got + residual.b.double() @ residual.a.double()


def off(wanted: Tensor, got: Tensor) -> float:
    return float((wanted - got).norm() / wanted.norm())


cases = st.fixed_dictionaries(
    {
        "ranks": st.lists(st.integers(1, 6), min_size=1, max_size=5),
        "out": st.integers(6, 40),
        "into": st.integers(6, 40),
        "rslora": st.booleans(),
        "alpha": st.floats(0.5, 64),
        "seed": st.integers(0, 1000),
    }
)


def shares(n: int, seed: int) -> list[float]:
    raw = torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.1
    return (raw / raw.sum()).tolist()


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_stacking_residual_and_svd_at_full_rank_are_exact(case: dict) -> None:
    ranks, total = case["ranks"], sum(case["ranks"])
    for cls in (FLoRA, FedEx, FlexLoRA, HLoRA):
        most = min(total, case["out"], case["into"]) if cls in (FlexLoRA, HLoRA) else max(ranks)
        rule = cls(rank=max(most, *ranks), alpha=case["alpha"], rslora=case["rslora"])
        adapters, before = clients(rule, ranks, case["out"], case["into"], case["seed"])
        weights = shares(len(ranks), case["seed"])
        done = rule.layer(adapters, weights, before, at())
        wanted = dense(adapters, weights)
        assert off(wanted, made_by(done.server, done.residual)) <= EXACT, cls
        assert done.error <= EXACT
        assert done.server.rank == rule.rank


@settings(max_examples=30, deadline=None)
@given(case=cases, index=st.integers(0, 5))
def test_a_shared_factor_is_exact(case: dict, index: int) -> None:
    n = len(case["ranks"])
    for cls, common in ((FFA, "A"), (RoLoRA, "A" if index % 2 == 0 else "B"), (FedIT, "A"), (FedIT, "B"), (FedSA, "A")):
        rule = cls(rank=4, alpha=case["alpha"], rslora=case["rslora"])
        adapters, before = clients(rule, [4] * n, case["out"], case["into"], case["seed"], common)
        weights = shares(n, case["seed"])
        done = rule.layer(adapters, weights, before, at(index))
        if cls is not FedSA:
            assert off(dense(adapters, weights), made_by(done.server, done.residual)) <= EXACT, cls
        assert done.error <= EXACT, cls


def test_fed_sb_is_exact_and_sends_its_cores() -> None:
    rule = FedSB(rank=5, alpha=7.0)
    adapters, before = clients(rule, [5] * 3, 33, 21, common="AB")
    cores = [torch.randn(5, 5, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    adapters = [Adapter(a=x.a, b=x.b @ r, scale=x.scale) for x, r in zip(adapters, cores, strict=True)]
    weights = shares(3, 1)
    done = rule.layer(adapters, weights, before, at())
    assert off(dense(adapters, weights), made_by(done.server, None)) <= EXACT
    assert torch.allclose(before.b @ rule.cores(cores, weights), done.server.b, atol=1e-5)
    assert done.up_bytes == done.down_bytes == (4 * 25,) * 3
    strangers, _ = clients(rule, [5] * 3, 33, 21, seed=9)
    with pytest.raises(ConfigError, match="frozen A"):
        rule.layer(strangers, weights, before, at())


@pytest.mark.parametrize("rule", LORA_RULES, ids=name)
def test_reported_error_is_the_dense_one_and_shapes_fit(rule: LoraRule) -> None:
    ranks = [rule.rank_of(k) for k in range(4)]
    common = {FFA: "A", RoLoRA: "A", FedSB: "A"}.get(type(rule), "")
    adapters, before = clients(rule, ranks, 40, 24, seed=3, common=common)
    weights = [0.5, 0.0, 0.2, 0.3]
    done = rule.layer(adapters, weights, before, at())
    wanted = dense(adapters, weights)
    if type(rule) is not FedSA:
        assert done.error == pytest.approx(off(wanted, made_by(done.server, done.residual)), abs=1e-6)
    else:
        assert done.error == pytest.approx(off(wanted, dense(list(done.clients), weights)), abs=1e-6)
    assert done.wanted_norm == pytest.approx(float(wanted.norm()), rel=1e-6)
    assert len(done.clients) == len(done.up_bytes) == len(done.down_bytes) == 4
    for x, got in zip(adapters, done.clients, strict=True):
        assert (got.a.shape, got.b.shape, got.scale) == (x.a.shape, x.b.shape, x.scale)
        assert got.a.dtype == got.b.dtype == torch.float32
    # the client of weight 0 changes nothing
    moved = [x if k != 1 else Adapter(a=x.a, b=x.b + 1, scale=x.scale) for k, x in enumerate(adapters)]
    if type(rule) is not RoLoRA:
        again = rule.layer(moved, weights, before, at())
        assert torch.equal(again.server.a, done.server.a)
        assert torch.equal(again.server.b, done.server.b)


@pytest.mark.parametrize("rule", LORA_RULES, ids=name)
def test_one_client_alone_keeps_its_dw(rule: LoraRule) -> None:
    """Except where its factors are cut (CELLM) or held back (FedRand, FedSA)."""
    if isinstance(rule, Cellm | FedRand | FedSA | LoraFair):
        pytest.skip("sends a part by design")
    common = {FFA: "A", RoLoRA: "A", FedSB: "A"}.get(type(rule), "")
    adapters, before = clients(rule, [rule.rank_of(0)], 20, 24, common=common)
    done = rule.layer(adapters, [1.0], before, at())
    assert off(dense(adapters, [1.0]), made_by(done.server, done.residual)) <= EXACT


def test_naive_is_off_by_what_theory_says() -> None:
    rule = FedIT(rank=8)
    errors = []
    for seed in range(5):
        adapters, before = clients(rule, [8] * 4, 64, 64, seed)
        done = rule.layer(adapters, [0.25] * 4, before, at())
        drift = sum(
            0.25 * rule.scale * ((x.b - done.server.b).double() @ (x.a - done.server.a).double()) for x in adapters
        )
        wanted = dense(adapters, [0.25] * 4)
        assert torch.allclose(wanted - made_by(done.server, None), drift, atol=1e-4)
        errors.append(done.error)
    assert 0.75 < sum(errors) / 5 < 0.95  # random factors, four clients: sqrt(3)/2


@pytest.mark.parametrize("transposed", [False, True], ids=["Linear", "Conv1D"])
def test_residual_goes_onto_the_weight_in_its_own_orientation(transposed: bool) -> None:
    """A peer transposed it for layers that are no Conv1D: error 1.14, worse than the naive 0.81. Square: no crash."""
    rule = FedEx(rank=4, alpha=8)
    adapters, before = clients(rule, [4] * 3, 32, 32, seed=2)
    weights = shares(3, 5)
    done = rule.layer(adapters, weights, before, at())
    assert done.residual is not None
    x = torch.randn(7, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = torch.randn(32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = x @ (base + dense(adapters, weights)).T
    adapter_part = x @ made_by(done.server, None).T

    def forward(flipped: bool) -> Tensor:
        weight = base.T.clone() if transposed else base.clone()
        weight = weight + done.residual.matrix(transposed=flipped).double()  # pyright: ignore[reportOptionalMemberAccess]
        return adapter_part + (x @ weight if transposed else x @ weight.T)

    scale = (wanted - x @ base.T).norm()
    assert float((wanted - forward(transposed)).norm() / scale) <= EXACT
    naive = rule.layer(adapters, weights, before, at()).server
    naive_error = off(dense(adapters, weights), made_by(naive, None))
    assert float((wanted - forward(not transposed)).norm() / scale) > naive_error


def test_scale_of_unequal_ranks_counts() -> None:
    """A peer rebuilt sum p_k B_k A_k without alpha / r_k: with ranks 2 and 8 that is another matrix."""
    rule = HLoRA(rank=10, alpha=16, ranks=(2, 8))
    adapters, before = clients(rule, [2, 8], 30, 20)
    assert [x.scale for x in adapters] == [8.0, 2.0]
    weights = [0.5, 0.5]
    done = rule.layer(adapters, weights, before, at())
    without = sum(p * (x.b.double() @ x.a.double()) for x, p in zip(adapters, weights, strict=True))
    wanted = dense(adapters, weights)
    assert done.error <= EXACT
    assert off(wanted, without * float((wanted * without).sum() / without.square().sum())) > 0.1  # at any common factor
    # what goes down is dW at each client's own scale: the best of its rank
    for x in done.clients:
        u, s, vh = torch.linalg.svd(wanted)
        best = u[:, : x.rank] @ torch.diag(s[: x.rank]) @ vh[: x.rank]
        assert off(best, x.scale * (x.b.double() @ x.a.double())) <= EXACT


@settings(max_examples=25, deadline=None)
@given(case=cases, rank=st.integers(1, 6))
def test_svd_is_the_best_of_its_rank(case: dict, rank: int) -> None:
    rule = FlexLoRA(rank=6, alpha=case["alpha"])
    adapters, _ = clients(rule, case["ranks"], case["out"], case["into"], case["seed"])
    weights = shares(len(adapters), 2)
    left, s, right = truncated(target(adapters, weights), rank)
    assert left.shape == (case["out"], rank)
    assert right.shape == (rank, case["into"])
    full = torch.linalg.svdvals(dense(adapters, weights))
    best = float(full[rank:].square().sum().sqrt())
    got = float((dense(adapters, weights) - left @ torch.diag(s) @ right).norm())
    assert got <= best + 1e-5 * float(full.norm())


def test_distances_in_dw_space_ignore_the_basis() -> None:
    rule = FedIT(rank=4)
    own, _ = clients(rule, [4, 4, 2], 20, 15)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))[0]
    same = Adapter(a=turn @ own[0].a, b=own[0].b @ turn.T, scale=own[0].scale)
    table = distances([[x] for x in [*own, same]])
    for i, j in itertools.combinations(range(3), 2):
        wanted = (dense([own[i]], [1.0]) - dense([own[j]], [1.0])).norm()
        assert float(table[i, j]) == pytest.approx(float(wanted), rel=1e-6)
    assert float(table[0, 3]) < 1e-3 * own[0].product.norm()
    assert float((own[0].a - same.a).norm()) > 1  # though the factors are far apart
    assert torch.equal(table, table.T)


def test_rolora_takes_its_turn_from_the_global_round() -> None:
    rule = RoLoRA(rank=3)
    a, b = "m.lora_A.default.weight", "m.lora_B.default.weight"
    assert [rule.trains(b, i) for i in range(4)] == [True, False, True, False]
    assert [rule.trains(a, i) for i in range(4)] == [False, True, False, True]
    assert rule.trains("head.weight", 0)
    assert rule.trains("head.weight", 1)
    late, before = clients(rule, [3, 3], 10, 12, common="B")  # these trained A in a round of B
    with pytest.raises(ConfigError, match="out of turn"):
        rule.layer(late, [0.5, 0.5], before, at(0))
    rule.layer(late, [0.5, 0.5], before, at(1))


def test_ffa_refuses_a_client_whose_a_moved() -> None:
    rule = FFA(rank=3)
    adapters, before = clients(rule, [3, 3], 10, 12)
    with pytest.raises(ConfigError, match="freeze A before training"):
        rule.layer(adapters, [0.5, 0.5], before, at())


def test_flora_gives_everybody_the_same_fresh_factors() -> None:
    rule = FLoRA(rank=3)
    adapters, before = clients(rule, [3, 3], 10, 12)
    first, again, next_round, other_layer = (
        rule.layer(adapters, [0.5, 0.5], before, at(i), layer).server for i, layer in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first.a, again.a)
    assert not torch.equal(first.a, next_round.a)
    assert not torch.equal(first.a, other_layer.a)
    assert bool((first.b == 0).all())


def test_lora_fair_lies_between_naive_and_the_best_b() -> None:
    weights = shares(4, 7)
    rules = [FedIT(rank=4), *(LoraFair(rank=4, penalty=p) for p in (1e6, 1.0, 0.01, 1e-9))]
    adapters, before = clients(rules[0], [4] * 4, 30, 20)
    errors = [r.layer(adapters, weights, before, at()).error for r in rules]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert errors == sorted(errors, reverse=True)
    a = rules[0].layer(adapters, weights, before, at()).server.a.double()
    wanted = dense(adapters, weights)
    best = wanted @ torch.linalg.pinv(a) @ a
    assert errors[-1] == pytest.approx(off(wanted, best), rel=1e-5)


def test_hetlora_weighs_by_size_and_prunes_only_what_got_lighter() -> None:
    rule = HetLoRA(rank=4, ranks=(4, 2))
    adapters, before = clients(rule, [4, 2], 12, 10)
    sizes = [float(dense([x], [1.0]).norm()) for x in adapters]
    expected = [0.3 * sizes[0], 0.7 * sizes[1]]
    assert sparsity_weights(adapters, [0.3, 0.7]) == pytest.approx([e / sum(expected) for e in expected])
    idle = [Adapter(a=x.a, b=torch.zeros_like(x.b), scale=x.scale) for x in adapters]
    assert sparsity_weights(idle, [0.3, 0.7]) == [0.3, 0.7]
    lighter = Adapter(a=before.a, b=before.b.clone(), scale=1.0)
    lighter.b[:, 3:] *= 0.5
    assert tail(lighter, 0.75) < tail(before, 0.75)
    assert pruned(lighter, before, 0.75).rank == 3
    assert pruned(lighter, before, 0.75).scale == 1.0
    assert pruned(before, lighter, 0.75).rank == 4
    assert pruned(lighter, before, 1.0).rank == 4
    with pytest.raises(ConfigError, match="gamma"):
        pruned(lighter, before, 0.0)


def test_fedrand_averages_over_who_sent_and_keeps_the_rest_private() -> None:
    rule = FedRand(rank=3)
    adapters, before = clients(rule, [3] * 3, 10, 12)
    done = rule.layer_of(adapters, [0.5, 0.25, 0.25], before, [True, True, False])
    assert torch.allclose(done.server.a, (adapters[0].a * 2 + adapters[1].a) / 3, atol=1e-6)
    assert torch.allclose(done.server.b, adapters[2].b, atol=1e-6)
    assert torch.equal(done.clients[0].b, adapters[0].b)
    assert torch.equal(done.clients[2].a, adapters[2].a)
    assert done.up_bytes == (4 * 3 * 12, 4 * 3 * 12, 4 * 3 * 10)
    untouched = rule.layer_of(adapters, [0.5, 0.25, 0.25], before, [True, True, True]).server.b
    assert torch.equal(untouched, before.b)
    draws = [
        rule.layer(adapters, [0.5, 0.25, 0.25], before, at(i), layer).up_bytes for i in range(8) for layer in (0, 1)
    ]
    assert len({x for row in draws for x in row}) == 2  # both halves are drawn


def test_cellm_keeps_a_fraction_both_ways() -> None:
    rule = Cellm(rank=4, fraction=0.1)
    adapters, before = clients(rule, [4] * 3, 30, 20)
    done = rule.layer(adapters, [0.5, 0.25, 0.25], before, at())
    moved = int((done.server.a != before.a).sum() + (done.server.b != before.b).sum())
    assert moved == round(0.1 * 4 * 50)
    assert done.up_bytes == (8 * 20,) * 3
    whole = Cellm(rank=4, fraction=1.0).layer(adapters, [0.5, 0.25, 0.25], before, at()).server
    naive = FedIT(rank=4).layer(adapters, [0.5, 0.25, 0.25], before, at()).server
    assert torch.allclose(whole.a, naive.a, atol=1e-5)
    assert torch.allclose(whole.b, naive.b, atol=1e-5)


def test_a_rule_works_on_contributions_by_name() -> None:
    """combine: pairs by peft's names, a tied second name left out, other parameters averaged; embeddings too."""
    rule = FedEx(rank=4, alpha=8, ranks=(4, 2))
    start = {
        "e.lora_embedding_A.default": torch.zeros(4, 9),
        "head.bias": torch.ones(3),
        "m.q.lora_A.default.weight": torch.zeros(4, 6),
        "e.lora_embedding_B.default": torch.zeros(5, 4),
        "m.q.lora_B.default.weight": torch.zeros(7, 4),
    }
    generator = torch.Generator().manual_seed(0)
    contributions = [
        Contribution(
            island=k, delta={n: torch.randn(v.shape, generator=generator) for n, v in start.items()}, weight=w, round=0
        )
        for k, w in enumerate((0.25, 0.75))
    ]
    done = rule.combine(contributions, Context(start=start, round=at()))
    assert list(done.delta) == list(start)
    assert torch.allclose(done.delta["head.bias"], sum(c.weight * c.delta["head.bias"] for c in contributions))
    assert set(done.residuals) == {"e", "m.q"}
    for layer, a, b in (
        ("m.q", "m.q.lora_A.default.weight", "m.q.lora_B.default.weight"),
        ("e", "e.lora_embedding_A.default", "e.lora_embedding_B.default"),
    ):
        wanted = sum(
            c.weight * rule.scale_of(r) * (-c.delta[b][:, :r]).double() @ (-c.delta[a][:r]).double()
            for c, r in zip(contributions, (4, 2), strict=True)
        )
        new = rule.scale * (-done.delta[b]).double() @ (-done.delta[a]).double()
        b_r, a_r = done.residuals[layer]
        assert off(wanted, new + b_r.double() @ a_r.double()) <= EXACT
    assert done.error is not None
    assert done.error <= EXACT
    assert "aggregation error" in done.notes[0]
    lone = {"m.q.lora_A.default.weight": torch.zeros(4, 6)}
    with pytest.raises(ConfigError, match="one of its LoRA factors only"):
        rule.combine([Contribution(island=0, delta=lone, weight=1.0, round=0)], Context(start=lone, round=at()))


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (FedIT(rank=0), "rank"),
        (FedIT(alpha=0.0), "alpha"),
        (FlexLoRA(rank=4, ranks=(4, 5)), "ranks"),
        (FFA(ranks=(8, 4)), "ranks"),
        (Cellm(fraction=0.0), "fraction"),
        (LoraFair(penalty=0.0), "penalty"),
        (FedIT(by="loss"), "by"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_settings_are_named(rule: LoraRule, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"sync\.aggregator\.{field}"):
        rule.check()
