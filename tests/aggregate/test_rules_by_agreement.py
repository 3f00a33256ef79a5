"""Flag, SMEA, SybilWall, FedCPA, trust and Shapley values: their formulas, reductions, bounds and state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowcomm.aggregate import SMEA, Aggregate, Aggregator, Context, FedCPA, Flag, Krum, Mean, Shapley, SybilWall, Trust
from lowcomm.aggregate.jacobi import eigen
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.data.proxy import Proxy
from lowcomm.exchange.buffered import Buffered
from lowcomm.schedule import Streaming
from lowcomm.types import ConfigError, Contribution, Delta, UnusableError
from tests.aggregate.test_robust_rules import (
    ROUND,
    combined,
    contributions,
    delta_of,
    flat,
    islands_of,
    result,
    rows_of,
)
from tests.support import toy


@given(st.integers(1, 9), st.integers(0, 1000))
@settings(max_examples=20)
def test_jacobi_gives_eigenvectors(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, max(1, count - 2), generator=generator, dtype=torch.float64)
    matrix = x @ x.T
    values, vectors = eigen(matrix.tolist())
    wanted = torch.linalg.eigvalsh(matrix).flip(0)
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), wanted, rtol=1e-9, atol=1e-9)
    v = torch.tensor(vectors, dtype=torch.float64)
    torch.testing.assert_close(v @ v.T, torch.eye(count, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(v @ matrix, torch.diag(wanted) @ v, rtol=1e-7, atol=1e-7)


def flagged(rows: Tensor, dimensions: int) -> Tensor:
    """By singular vectors of the whole vectors."""
    units = rows / rows.norm(dim=1, keepdim=True)
    a = torch.ones(len(rows)).double()
    basis = torch.empty(0)
    for _ in range(4):
        u, _, _ = torch.linalg.svd((units * a[:, None]).T, full_matrices=False)
        basis = u[:, :dimensions]
        a = ((1 - (units @ basis).square().sum(dim=1)).clamp(min=0) + 1e-7) ** -0.25
    mean = (units @ basis @ basis.T).mean(dim=0)
    return mean * rows.norm(dim=1).sort().values[(len(rows) - 1) // 2] / mean.norm()


@pytest.mark.parametrize("dimensions", [1, 2, 4])
def test_flag_is_its_formula(dimensions: int) -> None:
    rows = rows_of(6, 1, spread=1.0)
    rows[1] *= 30
    torch.testing.assert_close(
        result(Flag(dimensions=dimensions), rows), flagged(rows, dimensions), rtol=1e-4, atol=1e-4
    )


def test_flag_with_all_dimensions_is_the_mean_direction() -> None:
    rows = rows_of(5, 2)
    mean = (rows / rows.norm(dim=1, keepdim=True)).mean(dim=0)
    wanted = mean / mean.norm() * rows.norm(dim=1).sort().values[2]
    torch.testing.assert_close(result(Flag(dimensions=5), rows), wanted, rtol=1e-5, atol=1e-5)
    assert Flag().coefficients(torch.tensor([[4.0]], dtype=torch.float64), [1.0]) == [1.0]


def test_flag_leaves_a_lone_direction_out_whatever_its_size() -> None:
    rows = rows_of(6, 3, spread=0.1)
    rows[5] = -1000 * rows[5].flip(0)
    sound = rows[:5].mean(dim=0)
    found = result(Flag(dimensions=1), rows)
    assert torch.nn.functional.cosine_similarity(found, sound, dim=0) > 0.99
    zero = rows_of(6, 3)
    zero[2] = 0
    assert bool(result(Flag(), zero).isfinite().all())


def test_smea_is_the_set_of_least_spread() -> None:
    for seed in range(4):
        rows = rows_of(7, seed)
        rows[seed] += 2
        sets = list(itertools.combinations(range(7), 5))
        spread = [torch.linalg.matrix_norm(rows[list(s)] - rows[list(s)].mean(dim=0), ord=2) for s in sets]
        best = sets[int(torch.stack(spread).argmin())]
        torch.testing.assert_close(result(SMEA(faulty=2), rows), rows[list(best)].mean(dim=0), rtol=1e-5, atol=1e-5)
        assert seed not in best


def test_smea_without_faulty_ones_is_the_mean() -> None:
    rows = rows_of(6, 2)
    assert torch.equal(result(SMEA(faulty=0), rows), flat(Mean()(contributions(rows))))


def test_sybils_weigh_nothing_and_equal_islands_alike() -> None:
    rows = rows_of(6, 4, spread=3.0)
    rows[4], rows[5] = rows[3] * 2, rows[3] * 0.5  # three names, one direction
    note = combined(SybilWall(), rows).notes[0]
    assert all(f"{k}: 0" in note for k in (3, 4, 5)) and "0: 0.33" in note, note
    same = rows_of(1, 3).expand(4, -1)
    torch.testing.assert_close(result(SybilWall(), same), same[0], rtol=1e-6, atol=1e-6)


def test_histories_show_sybils_that_hide_in_noise() -> None:
    """Islands 4 and 5 send one vector and noise that is larger: in one round they differ, over rounds they do not."""
    state, made = Delta(), Aggregate(delta={})
    generator = torch.Generator().manual_seed(1)
    size = len(rows_of(1, 0)[0])
    goal, own = torch.randn(size, generator=generator).double(), torch.randn(4, size, generator=generator).double()
    for _ in range(30):
        rows = torch.cat([own, goal.expand(2, -1)]) + 1.5 * torch.randn(6, size, generator=generator).double()
        made = combined(SybilWall(), rows, state=state)
        state = made.state
    weights = dict(part.split(": ") for part in made.notes[0].removeprefix("SybilWall: weights ").split(", "))
    assert max(float(weights[k]) for k in "45") < 0.1 * min(float(weights[k]) for k in "0123")
    torch.testing.assert_close(state["4/v"] / 30, delta_of(goal)["v"], rtol=1, atol=1.5)


def critical(rows: Sequence[Tensor], start: Tensor, before: Tensor | None, share: float) -> list[float]:
    """FedCPA's scores of one matrix, by sets of indices."""
    parts = [(r * (start - r)).abs() for r in rows] + ([] if before is None else [((start - before) * start).abs()])
    many = max(1, round(share * start.numel()))
    sets = [[set(p.argsort(descending=down)[:many].tolist()) for p in parts] for down in (True, False)]

    def similar(i: int, j: int) -> float:
        total = 0.0
        for which in sets:
            both = sorted(which[i] & which[j])
            total += len(both) / len(which[i] | which[j])
            x, y = parts[i][both], parts[j][both]
            flat_one = len(both) < 2 or float(x.std()) == 0 or float(y.std()) == 0
            total += (
                (0.0 if flat_one else float(torch.corrcoef(torch.stack([x, y]))[0, 1]) + 1) / 2 if not flat_one else 0.5
            )
        return total / 2

    count = len(rows)
    found = [sum(similar(k, j) for j in range(count) if j != k) / (count - 1) for k in range(count)]
    return [s + (similar(k, count) if before is not None else 0.0) for k, s in enumerate(found)]


def cpa(rows: Tensor, start: Tensor, state: Delta | None = None) -> Aggregate:
    shape = (20, 30)
    given = [
        Contribution(island=i, delta={"m": r.float().view(shape)}, weight=1 / len(rows), round=3)
        for i, r in enumerate(rows)
    ]
    context = Context(start={"m": start.float().view(shape)}, round=ROUND, state=state or {})
    return FedCPA(share=0.1).combine(given, context)


@pytest.mark.parametrize("second_round", [False, True])
def test_fedcpa_is_its_formula(second_round: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    common, start = torch.randn(600, generator=generator), torch.randn(600, generator=generator)
    rows = (0.1 * (common + 0.3 * torch.randn(6, 600, generator=generator))).double().float()
    rows[5] = 0.1 * torch.randn(600, generator=generator)
    before = start + 0.1 * common if second_round else None
    state = None if before is None else {"m": before.view(20, 30)}
    scores = critical([r.double() for r in rows], start.double(), None if before is None else before.double(), 0.1)
    low, high = min(scores), max(scores)
    scaled = [min(0.99, max(0.01, (s - low) / (high - low))) for s in scores]
    kept = [min(1.0, max(0.0, math.log(s / (1 - s)) + 0.5)) for s in scaled]
    assert kept[5] == 0
    wanted = sum((a * r for a, r in zip(kept, rows.double(), strict=True)), torch.zeros(600).double())
    made = cpa(rows.double(), start, state)
    torch.testing.assert_close(
        made.delta["m"].reshape(-1).double(), wanted / sum(a > 0 for a in kept), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(made.state["m"], start.view(20, 30))


def test_fedcpa_of_equal_deltas_is_the_mean() -> None:
    rows = torch.randn(600).expand(4, -1).double()
    torch.testing.assert_close(cpa(rows, torch.randn(600)).delta["m"].reshape(-1).double(), rows[0])


@pytest.mark.parametrize("by", ["cosine", "losses"])
def test_trust_that_is_never_lost_is_the_mean(by: str) -> None:
    rows = rows_of(5, 1)
    rule = Trust(penalty=1.0, by=by)  # type: ignore[arg-type]
    context = Context(start=delta_of(rows[0]), round=ROUND, losses=lambda deltas: [0.0] * len(deltas))
    made = rule.combine(contributions(rows), context)
    again = rule.combine(contributions(rows), replace(context, state=made.state))
    exact = flat(Mean()(contributions(rows)))
    assert torch.equal(flat(made.delta), exact) and torch.equal(flat(again.delta), exact)


def test_trust_is_lost_at_once_and_won_back() -> None:
    """Island 4 is turned round until it is left out; then it behaves."""
    rule, state, told = Trust(penalty=0.3, least=0.1, back=0.3, rest=2, reward=0.1), Delta(), list[float]()
    for number in range(12):
        rows = rows_of(1, 7).repeat(5, 1)
        if number < 4:
            rows[4] = -rows[4]
        made = combined(rule, rows, state=state)
        state = made.state
        told.append(float(state["trust"][4]))
    assert told[:4] == pytest.approx([1.0, 0.3, 0.09, 0.09])  # the first round has nothing to judge by
    assert told[4] == pytest.approx(0.3) and told[-1] == pytest.approx(0.3 + 0.1 * 7)
    assert state["trust"][:4].tolist() == [1.0] * 4


def test_nobody_to_trust_ends_the_round() -> None:
    rows, rule = rows_of(3, 1), Trust()
    state = {"trust": torch.full((3,), 0.05).double(), "resting": torch.full((3,), 3)}
    with pytest.raises(UnusableError, match="no island that Trust trusts"):
        combined(rule, rows, state=state)


def judged(rows: Tensor, goal: Tensor) -> Callable[[Sequence[Delta]], list[float]]:
    return lambda deltas: [float((flat(d) - goal).square().sum()) for d in deltas]


def test_shapley_values_are_the_mean_gain_over_all_orders() -> None:
    rows = rows_of(3, 2)
    goal = rows[:2].mean(dim=0)
    losses = judged(rows, goal)
    rule = Shapley(rule=Krum(faulty=0, best=3), permutations=600, tolerance=0.0)
    made = rule.combine(contributions(rows), Context(start=delta_of(rows[0]), round=ROUND, losses=losses))
    zero = {n: torch.zeros_like(t) for n, t in delta_of(rows[0]).items()}

    def value(team: frozenset[int]) -> float:
        return losses([zero])[0] - losses([delta_of(rows[sorted(team)].mean(dim=0))])[0] if team else 0.0

    orders = list(itertools.permutations(range(3)))
    exact = [
        sum(value(frozenset(o[: o.index(k) + 1])) - value(frozenset(o[: o.index(k)])) for o in orders) / len(orders)
        for k in range(3)
    ]
    found = made.scores["phi"]
    assert [found[k] for k in range(3)] == pytest.approx(exact, rel=0.1)
    assert sum(found.values()) == pytest.approx(value(frozenset(range(3))), rel=1e-6)
    assert sum(made.scores["share"].values()) == pytest.approx(1)
    assert found[2] < min(found[0], found[1])
    assert torch.equal(flat(made.delta), result(Krum(faulty=0, best=3), rows))


def test_only_islands_that_the_rule_takes_are_scored_and_one_has_all() -> None:
    rows = rows_of(5, 2)
    rule = Shapley(rule=Krum(faulty=1, best=1), permutations=2)
    made = rule.combine(
        contributions(rows), Context(start=delta_of(rows[0]), round=ROUND, losses=judged(rows, rows.mean(dim=0)))
    )
    shares = sorted(made.scores["share"].values())
    assert shares == [0.0, 0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("rule", [SybilWall(), FedCPA(), Trust()], ids=lambda r: type(r).__name__)
def test_what_it_remembers_is_in_the_checkpoint(rule: Aggregator) -> None:
    from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island

    whole, saved, fresh = (islands_of(4, rule) for _ in range(3))
    for step in range(toy.STEPS):
        toy.train_step(whole, step)
    for step in range(2 * toy.EVERY + 2):
        toy.train_step(saved, step)
    assert saved.state.rule_states[0]
    load_global(fresh.state, global_part(saved.state))
    for i in range(4):
        load_island(fresh.state, i, island_part(saved.state, i))
    for step in range(2 * toy.EVERY + 2, toy.STEPS):
        toy.train_step(fresh, step)
    assert all(torch.equal(w, fresh.weights()[n]) for n, w in whole.weights().items())


REFUSED: list[tuple[SyncConfig, int, str]] = [
    (SyncConfig(aggregator=Flag(dimensions=0)), 4, r"sync\.aggregator\.dimensions = 0"),
    (SyncConfig(aggregator=Flag(dimensions=5)), 4, r"sync\.aggregator\.dimensions = 5 .* at most 4"),
    (SyncConfig(aggregator=SMEA(faulty=2)), 4, r"SMEA needs 2 faulty \+ 1 = 5 islands"),
    (SyncConfig(aggregator=SMEA(faulty=12)), 32, r"sets of islands, here 225792840, are at most 200000"),
    (SyncConfig(aggregator=SybilWall()), 2, r"needs 3 islands"),
    (SyncConfig(aggregator=FedCPA(share=0.0)), 4, r"sync\.aggregator\.share = 0\.0"),
    (SyncConfig(aggregator=Trust(penalty=0.0)), 4, r"sync\.aggregator\.penalty = 0\.0"),
    (SyncConfig(aggregator=Trust(reward=-0.1)), 4, r"sync\.aggregator\.reward = -0\.1"),
    (SyncConfig(aggregator=Trust(least=1.0)), 4, r"sync\.aggregator\.least = 1\.0"),
    (SyncConfig(aggregator=Trust(back=0.05)), 4, r"sync\.aggregator\.back = 0\.05"),
    (SyncConfig(aggregator=Trust(rest=0)), 4, r"sync\.aggregator\.rest = 0"),
    (SyncConfig(aggregator=Trust(by="norm")), 4, r"sync\.aggregator\.by = 'norm'"),  # type: ignore[arg-type]
    (SyncConfig(aggregator=Trust(by="losses")), 4, r"sync\.proxy = None .* Trust asks for losses"),
    (SyncConfig(aggregator=Shapley()), 4, r"sync\.proxy = None .* Fix: pass --sync\.proxy\.source"),
    (SyncConfig(aggregator=Shapley(), proxy=Proxy(sequences=0)), 4, r"sync\.proxy\.sequences = 0"),
    (SyncConfig(proxy=Proxy()), 4, r"sync\.proxy = 'Proxy' .* Mean judges nothing by losses"),
    (SyncConfig(aggregator=Shapley(permutations=0), proxy=Proxy()), 4, r"sync\.aggregator\.permutations = 0"),
    (SyncConfig(aggregator=Shapley(tolerance=1.0), proxy=Proxy()), 4, r"sync\.aggregator\.tolerance = 1\.0"),
    (SyncConfig(aggregator=Shapley(rule=Krum(faulty=1)), proxy=Proxy()), 4, r"Krum needs 2 faulty \+ 3 = 5"),
    (
        SyncConfig(aggregator=Shapley(), proxy=Proxy(), schedule=Streaming(fragments=2, delay=0)),
        4,
        r"sync\.schedule = Streaming .* needs the whole model",
    ),
    (SyncConfig(aggregator=Shapley(), proxy=Proxy(), exchange=Buffered(size=2)), 4, r"sync\.aggregator = Shapley"),
]


@pytest.mark.parametrize(("sync", "islands", "message"), REFUSED, ids=[m[:40] for _, _, m in REFUSED])
def test_settings_that_do_not_fit_are_refused(sync: SyncConfig, islands: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(RunConfig(sync=sync), islands)
    assert "\n" not in str(caught.value) and "Fix: " in str(caught.value)
