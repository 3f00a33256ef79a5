"""Rules for strangers: their formulas, reductions, bounds under attack, shards, state, and what they refuse."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowcomm.aggregate import (
    NNM,
    Aggregate,
    Aggregator,
    Bucketing,
    CentredClipping,
    Context,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    MoNNA,
    NormBound,
    TrimmedMean,
)
from lowcomm.codec import Fp32
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_check import check
from lowcomm.outer import SGD
from lowcomm.schedule import EveryStep
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.cohort import Cohort
from lowcomm.state.fragment import Fragment
from lowcomm.sync import LocalSGD
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Contribution, Delta, Payload, Round
from tests.methods import AGGREGATORS, name
from tests.support import toy
from tests.support.exchanging import carry

ROUND = Round(index=3, step=12, fragments=(0,), seed=1)
SHAPES = {"w": (3, 5), "v": (977,), "s": ()}
FOR_ONE = (
    Krum(faulty=1, best=2),
    Median(),
    TrimmedMean(faulty=1),
    GeometricMedian(),
    CentredClipping(),
    NormBound(),
    NNM(faulty=1) | TrimmedMean(faulty=1),
    NNM(faulty=1) | CentredClipping(),
    NNM(faulty=1) | Krum(faulty=1),
    Bucketing(size=2) | TrimmedMean(faulty=1),
    NNM(faulty=1) | Bucketing(size=2) | Median(),
    MoNNA(faulty=1),
)
"""Rules that bear one faulty island of six."""


def rows_of(count: int, seed: int, spread: float = 0.3) -> Tensor:
    """Deltas around a common one, as rows in fp64 of fp32 values."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(torch.Size(s).numel() for s in SHAPES.values())
    common = torch.randn(size, generator=generator)
    return (common + spread * torch.randn(count, size, generator=generator)).double()


def delta_of(row: Tensor) -> Delta:
    parts = row.float().split([torch.Size(s).numel() for s in SHAPES.values()])
    return {n: p.reshape(s).clone() for (n, s), p in zip(SHAPES.items(), parts, strict=True)}


def contributions(rows: Tensor, weights: Sequence[float] | None = None) -> list[Contribution]:
    shares = weights or [1 / len(rows)] * len(rows)
    return [Contribution(island=i, delta=delta_of(r), weight=shares[i], round=3) for i, r in enumerate(rows)]


def flat(delta: Delta) -> Tensor:
    return torch.cat([t.reshape(-1) for t in delta.values()]).double()


def combined(rule: Aggregator, rows: Tensor, round: Round = ROUND, state: Delta | None = None) -> Aggregate:
    return rule.combine(contributions(rows), Context(start=delta_of(rows[0]), round=round, state=state or {}))


def result(rule: Aggregator, rows: Tensor) -> Tensor:
    return flat(combined(rule, rows).delta)


@pytest.mark.parametrize("rule", [r for r in (*AGGREGATORS, *FOR_ONE) if r.withstands > 0], ids=name)
def test_rules_withstand_as_many_of_any_size_as_they_say(rule: Aggregator) -> None:
    rows = rows_of(rule.fewest, seed=1)
    usual = float(rows.norm(dim=1).max())
    rows[-rule.withstands :] *= 1e6
    assert float(result(rule, rows).norm()) < 2 * usual


def nearest(rows: Tensor, faulty: int) -> Tensor:
    squares = (rows[:, None] - rows[None]).square().sum(dim=-1)
    return torch.stack([rows[s.argsort(stable=True)[: len(rows) - faulty]].mean(dim=0) for s in squares])


def clipped(rows: Tensor, start: Tensor, radius: float | None, iterations: int) -> Tensor:
    v = start
    for _ in range(iterations):
        far = (rows - v).norm(dim=1)
        tau = far.sort().values[(len(rows) - 1) // 2] if radius is None else radius
        v = v + ((rows - v) * (tau / far).clamp(max=1)[:, None]).mean(dim=0)
    return v


def bounded(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1)
    return rows * (norms.sort().values[(len(rows) - 1) // 2] / norms).clamp(max=1)[:, None]


FORMULAS: dict[str, tuple[Aggregator, Callable[[Tensor], Tensor]]] = {
    "median": (Median(), lambda r: (r.sort(dim=0).values[(len(r) - 1) // 2] + r.sort(dim=0).values[len(r) // 2]) / 2),
    "trimmed": (TrimmedMean(faulty=2), lambda r: r.sort(dim=0).values[2:-2].mean(dim=0)),
    "norm bound": (NormBound(), lambda r: bounded(r).mean(dim=0)),
    "clipping": (CentredClipping(iterations=5), lambda r: clipped(r, torch.zeros_like(r[0]), None, 5)),
    "clipping, radius": (CentredClipping(radius=9.0), lambda r: clipped(r, torch.zeros_like(r[0]), 9.0, 3)),
    "nnm": (NNM(faulty=2) | TrimmedMean(faulty=0), lambda r: nearest(r, 2).mean(dim=0)),
    "nnm, trimmed": (
        NNM(faulty=2) | TrimmedMean(faulty=2),
        lambda r: nearest(r, 2).sort(dim=0).values[2:-2].mean(dim=0),
    ),
    "nnm, clipping": (NNM() | CentredClipping(), lambda r: clipped(nearest(r, 1), torch.zeros_like(r[0]), None, 3)),
    "nnm twice": (NNM() | NNM() | NormBound(), lambda r: bounded(nearest(nearest(r, 1), 1)).mean(dim=0)),
}


@pytest.mark.parametrize("case", FORMULAS)
@pytest.mark.parametrize("count", [7, 8])
def test_it_is_the_formula(case: str, count: int) -> None:
    rule, formula = FORMULAS[case]
    rows = rows_of(count, count)
    rows[1] *= 3
    torch.testing.assert_close(result(rule, rows), formula(rows), rtol=1e-4, atol=1e-5)


def test_the_geometric_median_is_the_closest_point() -> None:
    """No point along a random direction has a smaller sum of distances."""
    rows = rows_of(7, 1)
    rows[2] += 20
    found = result(GeometricMedian(iterations=100), rows)

    def cost(point: Tensor) -> float:
        return float((rows - point).norm(dim=1).sum())

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        direction = torch.randn(len(found), generator=generator).double()
        assert cost(found) <= cost(found + 0.01 * direction) + 1e-9


@pytest.mark.parametrize("rule", [r for r in FOR_ONE if "Bucketing" not in name(r)], ids=name)
@given(order=st.permutations(range(6)))
@settings(max_examples=3, deadline=None)
def test_the_order_of_islands_changes_nothing(rule: Aggregator, order: list[int]) -> None:
    rows = rows_of(6, 1)
    torch.testing.assert_close(result(rule, rows), result(rule, rows[order]), rtol=1e-4, atol=1e-5)


OUTLIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "huge": lambda d: torch.full_like(d, 3e38),
    "turned round, blown up": lambda d: -100 * d,
    "nothing": torch.zeros_like,
}


@pytest.mark.parametrize("kind", OUTLIERS)
@pytest.mark.parametrize("rule", FOR_ONE, ids=name)
def test_one_island_of_any_size_moves_the_result_no_farther_than_sound_ones_reach(rule: Aggregator, kind: str) -> None:
    """From the mean of the five others; a norm bound only sees to it that one counts as much as one."""
    for place in (0, 5):
        rows = rows_of(6, 7)
        sound = torch.cat([rows[:place], rows[place + 1 :]])
        rows[place] = OUTLIERS[kind](rows[place])
        off = (result(rule, rows) - sound.mean(dim=0)).norm()
        spread = (sound - sound.mean(dim=0)).norm(dim=1).max()
        limit = 2 / 6 * 1.2 * sound.norm(dim=1).max() if isinstance(rule, NormBound | CentredClipping) else 1.5 * spread
        assert off <= limit, (place, float(off), float(limit))


@pytest.mark.parametrize(
    "rule",
    [
        TrimmedMean(faulty=0),
        CentredClipping(radius=float("inf")),
        NNM(faulty=0) | Median(),
        Bucketing(size=6) | Median(),
        Bucketing(size=1) | TrimmedMean(faulty=0),
        Bucketing(size=2) | Krum(faulty=0, best=3),
        GeometricMedian(iterations=0),
        NormBound(),
        MoNNA(faulty=0, beta=0.0),
    ],
    ids=name,
)
def test_switched_off_it_is_the_mean(rule: Aggregator) -> None:
    rows = rows_of(6, 2)
    if isinstance(rule, NormBound | GeometricMedian):
        rows = rows / rows.norm(dim=1, keepdim=True)
    state = delta_of(rows[3]) if isinstance(rule, CentredClipping) else None
    torch.testing.assert_close(flat(combined(rule, rows, state=state).delta), rows.mean(dim=0), rtol=1e-5, atol=1e-6)
    if isinstance(rule, TrimmedMean | CentredClipping | MoNNA):
        exact = flat(Mean()(contributions(rows)))
        assert torch.equal(flat(combined(rule, rows, state=state).delta), exact)


@pytest.mark.parametrize("rule", FOR_ONE, ids=name)
def test_equal_deltas_come_through(rule: Aggregator) -> None:
    rows = rows_of(1, 3).expand(6, -1)
    state = delta_of(rows[0]) if "Clipping" in name(rule) else None
    torch.testing.assert_close(flat(combined(rule, rows, state=state).delta), rows[0], rtol=1e-5, atol=1e-6)


def test_trimming_all_but_the_middle_is_the_median() -> None:
    for count, faulty in ((5, 2), (6, 2)):
        rows = rows_of(count, 4)
        torch.testing.assert_close(result(TrimmedMean(faulty=faulty), rows), result(Median(), rows))


def test_mixings_compose_in_any_grouping_and_with_a_table_or_without() -> None:
    rows = rows_of(7, 5)
    first, second, rule = NNM(faulty=1), Bucketing(size=2), Median()
    assert torch.equal(result(first | second | rule, rows), result(first | (second | rule), rows))
    made = combined(NNM(faulty=2) | Krum(faulty=0, best=7), rows)  # on the table
    blended = combined(NNM(faulty=2) | TrimmedMean(faulty=0), rows)  # made, then averaged
    torch.testing.assert_close(flat(made.delta), flat(blended.delta), rtol=1e-5, atol=1e-6)


def test_buckets_are_drawn_anew_in_each_round_and_alike_everywhere() -> None:
    weights = [1 / 6] * 6
    tables = [Bucketing().matrix([[0.0] * 6] * 6, weights, dataclasses.replace(ROUND, seed=s)) for s in (1, 1, 2, 3)]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2] or tables[0] != tables[3]
    assert all(sum(m > 0 for m in row) == 2 for rows, _ in tables for row in rows)


@pytest.mark.parametrize("rule", [r for r in FOR_ONE if not isinstance(r, Krum)], ids=name)
def test_shards_together_give_what_the_whole_gives(rule: Aggregator) -> None:
    """Two ranks as threads: each holds a part of every Delta, and their tables are added at a barrier."""
    rows = rows_of(6, 3)
    rows[:2, :5] += 10  # only the first rank sees these two apart
    cut = 7
    barrier, tables, found = threading.Barrier(2, timeout=60), [torch.empty(0)] * 2, [torch.empty(0)] * 2

    def rank(number: int) -> None:
        def sum_ranks(table: Tensor) -> Tensor:
            tables[number] = table
            barrier.wait()
            both = tables[0] + tables[1]
            barrier.wait()
            return both

        part = [r[:cut] if number == 0 else r[cut:] for r in rows]
        shards = [Contribution(island=i, delta={"x": p.float()}, weight=1 / 6, round=3) for i, p in enumerate(part)]
        context = Context(start=shards[0].delta, round=ROUND, sum_ranks=sum_ranks)
        found[number] = rule.combine(shards, context).delta["x"].double()

    threads = [threading.Thread(target=rank, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat(found), result(rule, rows), rtol=1e-5, atol=1e-6)


def islands_of(count: int, rule: Aggregator) -> LocalSGD:
    models = [toy.Net() for _ in range(count)]
    inners = [toy.adamw(m) for m in models]
    return LocalSGD(models, inners, every=toy.EVERY, outer=SGD(lr=1.0), aggregator=rule, transport=Simulated(count))


@pytest.mark.parametrize("rule", [CentredClipping(), NNM() | CentredClipping(), MoNNA()], ids=name)
def test_what_it_remembers_is_in_the_checkpoint(rule: Aggregator) -> None:
    whole, saved, fresh = (islands_of(5, rule) for _ in range(3))
    for step in range(toy.STEPS):
        toy.train_step(whole, step)
    for step in range(2 * toy.EVERY + 2):
        toy.train_step(saved, step)
    kept = {key.rpartition("/")[2] for key in saved.state.rule_states[0]}  # of MoNNA one for each island
    assert kept == set(saved.weights())
    load_global(fresh.state, global_part(saved.state))
    for i in range(5):
        load_island(fresh.state, i, island_part(saved.state, i))
    for step in range(2 * toy.EVERY + 2, toy.STEPS):
        toy.train_step(fresh, step)
    whole.finish()
    fresh.finish()
    assert all(torch.equal(w, fresh.weights()[n]) for n, w in whole.weights().items())


def test_it_clips_around_the_last_update() -> None:
    rows = rows_of(6, 8)
    rule = CentredClipping(radius=1.0, iterations=1)
    once = combined(rule, rows)
    again = combined(rule, rows, state=once.state)
    wanted = clipped(rows, flat(once.delta), 1.0, 1)
    torch.testing.assert_close(flat(again.delta), wanted, rtol=1e-4, atol=1e-5)


def test_momenta_show_what_hides_within_the_spread_of_a_round() -> None:
    """Island 5 is always off by a fifth of the spread in one direction: over rounds that is far, in one it is not."""
    rule, state, told, once = MoNNA(faulty=1, beta=0.9), Delta(), list[str](), list[str]()
    generator = torch.Generator().manual_seed(0)
    momenta: dict[int, Tensor] = {}
    found = torch.empty(0)
    for number in range(20):
        rows = torch.randn(6, len(rows_of(1, 0)[0]), generator=generator).double()
        rows[5] += 0.2
        made = combined(rule, rows, state=state)
        found = flat(made.delta)
        once += combined(MoNNA(faulty=1, beta=0.0), rows).notes
        for k, row in enumerate(rows.float().double()):
            momenta[k] = row if number == 0 else 0.9 * momenta[k] + 0.1 * row
        told.append(made.notes[0])
        state = made.state
    assert all(n.endswith("left out 5") for n in told[-5:])
    assert not all(n.endswith("left out 5") for n in once)
    for k, wanted in momenta.items():
        own = flat({n: state[f"{k}/{n}"] for n in SHAPES})
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)
    near = torch.stack([momenta[k] for k in range(5)]).mean(dim=0)
    torch.testing.assert_close(found, near, rtol=1e-4, atol=1e-5)


class Poison(Fp32):
    """What comes from island 1 is NaN, whatever norm it has said."""

    def decode(self, payload: Payload, like: Delta, round: Round | None = None) -> Delta:
        found = super().decode(payload, like, round)
        return {n: t * torch.nan if round is not None and round.island == 1 else t for n, t in found.items()}


@pytest.mark.parametrize("rule", [r for r in AGGREGATORS if r.needs == "each" and not r.proxies], ids=name)
def test_values_that_are_not_finite_are_left_out_whatever_norm_was_said(rule: Aggregator) -> None:
    """Found in the payload by every island: a sort, or a comparison of distances, would say nothing of NaN."""
    fragment = Fragment({"w": torch.empty(40)}, 5, torch.device("cpu"))
    deltas = [torch.randn(fragment.size, generator=torch.Generator().manual_seed(k)) for k in range(5)]
    roll = Cohort(weights=[0.2] * 5, tokens=[1.0] * 5, dropped={}, norms=[1.0] * 5)
    done = carry(fragment, deltas, Simulated(5), Poison(), rule, [{}] * 5, roll, ROUND)
    assert "the decoded w is not finite" in done.cohort.dropped[1]
    assert bool(fragment.mean.isfinite().all())


@pytest.mark.parametrize(
    ("rule", "islands", "message"),
    [
        (Median(), 2, r"sync\.aggregator = 'Median' .* needs 3 islands, there are 2. Fix: start 3"),
        (
            TrimmedMean(faulty=2),
            4,
            r"sync\.aggregator\.faulty = 2 .* = 5 islands, there are 4. Fix: set it to 1 or less",
        ),
        (TrimmedMean(faulty=-1), 4, r"sync\.aggregator\.faulty = -1"),
        (GeometricMedian(), 2, r"'GeometricMedian' .* needs 3 islands"),
        (GeometricMedian(iterations=-1), 4, r"sync\.aggregator\.iterations = -1"),
        (CentredClipping(radius=0.0), 4, r"sync\.aggregator\.radius = 0\.0"),
        (CentredClipping(iterations=0), 4, r"sync\.aggregator\.iterations = 0"),
        (NormBound(), 1, r"'NormBound' .* needs 3 islands, there are 1"),
        (NormBound(by="size"), 4, r"sync\.aggregator\.by = 'size'"),  # type: ignore[arg-type]
        (NNM(faulty=2) | Median(), 4, r"sync\.aggregator\.faulty = 2 .*NNM needs 2 faulty \+ 1 = 5 islands"),
        (Bucketing(size=2) | Krum(faulty=1), 8, r"sync\.aggregator\.faulty = 1 .* 5 islands, there are 4"),
        (Bucketing(size=0) | Median(), 8, r"sync\.aggregator\.first\.size = 0"),
        (NNM() | Mean(), 6, r"sync\.aggregator\.then = 'Mean' .* Fix: use TrimmedMean"),
        (NNM() | Bucketing(size=3) | Median(), 6, r"'Median' .* needs 3 islands, there are 2"),
    ],
    ids=lambda value: name(value) if isinstance(value, Aggregator) else str(value)[:12],
)
def test_settings_out_of_range_are_refused(rule: Aggregator, islands: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        check(RunConfig(sync=SyncConfig(aggregator=rule)), islands)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", [Median(), NormBound(), NNM() | TrimmedMean()], ids=name)
def test_what_would_go_round_it_is_refused(rule: Aggregator) -> None:
    with pytest.raises(ConfigError, match=r"sync\.schedule = EveryStep .* Fix: use EveryH"):
        check(RunConfig(sync=SyncConfig(aggregator=rule, schedule=EveryStep())), 6)
