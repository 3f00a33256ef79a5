"""Modes that never wait, as pure functions: when a version is due, what contributions count, what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lowcomm.arrival import (
    AEdit,
    Anarchic,
    AnarchicSilos,
    ArrivalRule,
    BackupWorkers,
    Decoupled,
    FedBuff,
    FedCompass,
    Moment,
    Pace,
    Timed,
    TokenBatch,
    TurnStale,
)
from lowcomm.arrival import Waiting as One
from lowcomm.types import ConfigError
from tests.methods import ARRIVALS, name

MEMBERS = frozenset("abcd")
PACES = {k: Pace(t, 800 / t, t / 8) for k, t in (("a", 10.0), ("b", 10.0), ("c", 20.0), ("d", 40.0))}


def one(author: str, **fields: Any) -> One:
    return One(**{"author": author, "tokens": 800.0, "steps": 8, "staleness": 0, **fields})


def at(*here: One, waited_s: float = 0.0, paces: dict[str, Pace] | None = None) -> Moment:
    return Moment(here=here, members=MEMBERS, paces=PACES if paces is None else paces, waited_s=waited_s)


def factors(rule: ArrivalRule, *here: One, paces: dict[str, Pace] | None = None) -> list[float]:
    """What each Delta is multiplied by."""
    weights = [rule.weight(x, at(*here, paces=paces)) for x in here]
    return [w * rule.scale(here, sum(weights)) for w in weights]


def test_a_pace_is_a_moving_mean() -> None:
    first = Pace(0.0).then(10.0, 800, 8)
    assert first == Pace(10.0, 80.0, 1.25)
    assert first.then(20.0, 800, 8) == Pace(15.0, 60.0, 1.875)
    assert first.then(0.0, 800, 8) == first


def test_fedbuff_counts_contributions_and_damps_stale_ones() -> None:
    rule = FedBuff(size=2)
    assert not rule.due(at(one("a")))
    assert rule.due(at(one("a"), one("a")))
    assert factors(rule, one("a"), one("b", staleness=3)) == [0.5, 0.25]


def test_unbiased_weights_make_every_island_count_alike_in_the_long_run() -> None:
    """Factor times contributions per second is the same for all; equal speeds: one."""
    for rule in (FedBuff(size=2, weights="unbiased", staleness="constant"), Timed(every_s=10.0)):
        per_s = [factors(rule, one(k))[0] / PACES[k].round_s for k in "abcd"]
        assert max(per_s) == pytest.approx(min(per_s))
    equal = dict.fromkeys("abcd", Pace(10.0))
    assert factors(FedBuff(size=2, weights="unbiased"), one("c"), paces=equal) == [pytest.approx(0.5)]
    assert factors(FedBuff(size=2, weights="unbiased"), one("c"), paces={"c": Pace(5.0)}) == [0.5], "not all are known"


def test_timed_weights_are_the_papers() -> None:
    rule = Timed(every_s=15.0)
    assert factors(rule, *(one(k) for k in "acd")) == [1 / 4, 2 / 4, 3 / 4]
    assert factors(dataclasses.replace(rule, weights="identical"), *(one(k) for k in "acd")) == [1 / 4] * 3
    assert not rule.due(at(one("a"), waited_s=14.9)) and rule.due(at(one("a"), waited_s=15.0))


def test_decoupled_waits_for_its_quorum_and_then_as_long_as_it_costs_nobody_compute() -> None:
    rule = Decoupled(quorum=0.5, slack=0.5)
    assert not rule.due(at(one("a", waited_s=99.0), one("a")))
    assert not rule.due(at(one("c", waited_s=9.9), one("d", waited_s=9.9)))
    assert rule.due(at(one("c", waited_s=10.0), one("d"))), "half of c's round"
    assert rule.due(at(*(one(k) for k in "abcd"))), "nobody is missing"
    assert factors(rule, one("a"), one("d")) == [0.5, 0.5], "equal work weighs the same"
    fast, slow = one("a", tokens=800.0, steps=8), one("d", tokens=400.0, steps=8)
    assert factors(rule, fast, slow) == [pytest.approx(4 / 5), pytest.approx(1 / 5)]


def test_a_token_batch_ends_by_tokens_and_shares_steps_by_rate() -> None:
    rule = TokenBatch(tokens=2200)
    assert not rule.due(at(one("a"), one("b"))) and rule.due(at(one("a"), one("b"), one("c", tokens=600.0)))
    assert factors(rule, one("a", tokens=300.0), one("b", tokens=100.0)) == [0.75, 0.25]
    assert [rule.steps(5, k, at()) for k in "abcd"] == [8, 8, 4, 2]
    assert rule.steps(5, "a", at(paces={"a": Pace(1.0, 1.0, 1.0)})) == 5, "not all rates are known"


def test_backup_workers_are_as_many_as_gain_most_per_second() -> None:
    def wanted(rule: BackupWorkers, norm: float, mean_square: float, paces: dict[str, Pace] | None = None) -> int:
        norms = {k: [9.0, norm] for k in "abcd"}
        moment = dataclasses.replace(at(paces=paces), norms=norms, mean_square=mean_square, mean_of=4)
        n = rule.wanted(moment)
        here = tuple(one(k) for k in "abcd")
        assert rule.due(dataclasses.replace(moment, here=here[:n]))
        assert not rule.due(dataclasses.replace(moment, here=(*here[: n - 1], *here[: n - 1])))
        return n

    rule = BackupWorkers(least=0.25)
    assert wanted(rule, 1.0, 1.0) == 2, "all agree: rounds of 10, 10, 20, 40 s, the second costs nothing"
    assert wanted(dataclasses.replace(rule, least=0.6), 1.0, 1.0) == 3
    assert wanted(dataclasses.replace(rule, least=1.0), 1.0, 1.0) == 4
    assert wanted(rule, 10.0, 1.0) == 4, "noise outweighs what is left to learn"
    # V = 1, S = 0.75: (0.375 - 0.5/n) / T(n) is 0.0125, 0.0104 and 0.00625 for n = 2, 3, 4
    assert wanted(rule, 2**0.5, 1.0) == 2
    # V = 1.4, S = 0.65: (0.325 - 0.7/n) / T(n) is below 0, 0.0046 and 0.00375
    assert wanted(rule, 2.4**0.5, 1.0) == 3
    assert wanted(rule, 1.0, 1.0, dict.fromkeys("abcd", Pace(10.0))) == 4, "equal speeds"
    assert wanted(rule, 1.0, 0.0) == 4 and wanted(rule, 1.0, 1.0, {"a": Pace(10.0)}) == 4, "not known yet"
    assert factors(rule, one("a"), one("b", staleness=3)) == [0.5, 0.5]


def test_even_islands_take_steps_by_their_speed() -> None:
    rule = FedBuff(even=True)
    assert [rule.steps(32, k, at()) for k in "abcd"] == [32, 32, 16, 8]
    assert rule.steps(32, "a", at(paces={})) == 32
    assert FedBuff().steps(32, "d", at()) == 32 and not FedBuff().sets_steps and rule.sets_steps


def test_anarchic_counts_inner_steps() -> None:
    assert factors(Anarchic(size=2, nominal_steps=16), one("a"), one("b", steps=32)) == [1.0, 0.25]


def test_edit_leaves_out_what_is_out_of_the_ordinary_and_weighs_by_the_norm() -> None:
    rule = AEdit(size=2, z_most=3.0, warm_up=4)
    known = dataclasses.replace(at(), norms={"a": [9.0, 11.0, 9.0, 11.0], "b": [10.0] * 3}, usual_norm=900.0)
    assert rule.weight(one("a", norm=12.9), known) > 0 and rule.weight(one("a", norm=13.1), known) == 0
    assert rule.weight(one("b", norm=99.0), known) > 0, "not known for long enough"
    here = [one("c", norm=901.0), one("d", norm=899.0)]
    weights = [rule.weight(x, known) for x in here]
    shares = [w * rule.scale(here, sum(weights)) for w in weights]
    assert shares == pytest.approx([1 / (1 + math.e**2), 1 / (1 + math.e**-2)])
    assert factors(rule, one("a", norm=5.0), one("b", norm=5.0)) == [0.5, 0.5]


def test_the_turn_is_the_papers() -> None:
    turn = TurnStale(c_ok=0.5, kappa=2.0, k_d=0.5, k_s=1.0, b_max=0.4)
    m = torch.tensor([2.0, 0.0, 0.0])

    def turned(*d: float, staleness: int = 1) -> torch.Tensor:
        return turn([torch.tensor(d)], [m], staleness)[0]

    torch.testing.assert_close(turned(1.0, 1.0, 0.0), torch.tensor([1.0, 1.0, 0.0]))  # c = 0.71
    against = turned(-3.0, 4.0, 0.0)  # c = -0.6, confidence 5 / 9, share 1/3
    torch.testing.assert_close(against, torch.tensor([-2.0, 4.0, 0.0]))
    torch.testing.assert_close(turned(-30.0, 1.0, 0.0)[0], torch.tensor(-18.0), msg="at most b_max")
    beside = turned(0.0, 3.0, 0.0)  # c = 0, confidence 3 / 7
    lam = 0.5 * 3 / 7
    expected = torch.tensor([lam, 1 - lam, 0.0])
    torch.testing.assert_close(beside, 3 * expected / expected.norm())
    assert float(beside.norm()) == pytest.approx(3.0)
    fresh = torch.tensor([-3.0, 4.0, 0.0])
    assert turn([fresh], [m], 0)[0] is fresh and turn([fresh], [None], 5)[0] is fresh
    assert torch.equal(turned(0.0, 0.0, 0.0), torch.zeros(3))


def test_a_turn_of_nothing_is_the_identity() -> None:
    turn = TurnStale(c_ok=0.0, k_s=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        d, m = (torch.randn(7, generator=generator) for _ in range(2))
        assert torch.equal(turn([d], [m], 3)[0], d)


@pytest.mark.parametrize("rule", ARRIVALS, ids=name)
def test_rules_are_checked_and_their_weights_are_sane(rule: ArrivalRule) -> None:
    rule.check("rule", 4)
    here = [one(k, staleness=n, steps=n + 1) for n, k in enumerate("abcd")]
    found = factors(rule, *here)
    assert all(math.isfinite(f) and f > 0 for f in found)
    assert rule.steps(8, "a", at(*here)) >= 1


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (FedBuff(size=0), "size"),
        (FedBuff(staleness="linear"), "staleness"),  # pyright: ignore[reportArgumentType]
        (FedBuff(weights="equal"), "weights"),  # pyright: ignore[reportArgumentType]
        (Timed(every_s=0.0), "every_s"),
        (Timed(every_s=math.inf), "every_s"),
        (Decoupled(quorum=0.0), "quorum"),
        (Decoupled(quorum=1.1), "quorum"),
        (Decoupled(slack=-0.1), "slack"),
        (TokenBatch(tokens=0), "tokens"),
        (Anarchic(size=5000), "size"),
        (Anarchic(nominal_steps=0), "nominal_steps"),
        (AnarchicSilos(size=0), "size"),
        (BackupWorkers(least=0.0), "least"),
        (FedCompass(least_steps=0), "least_steps"),
        (FedCompass(most_steps=19), "most_steps"),
        (FedCompass(late=0.9), "late"),
        (FedCompass(staleness="none"), "staleness"),  # pyright: ignore[reportArgumentType]
        (BackupWorkers(curvature=2.5), "curvature"),
        (BackupWorkers(curvature=math.nan), "curvature"),
        (AnarchicSilos(nominal_steps=0), "nominal_steps"),
        (AEdit(size=0), "size"),
        (AEdit(z_most=0.0), "z_most"),
        (AEdit(warm_up=1), "warm_up"),
        (FedBuff(turn=TurnStale(c_ok=1.5)), "turn.c_ok"),
        (FedBuff(turn=TurnStale(b_max=2.0)), "turn.b_max"),
        (FedBuff(turn=TurnStale(kappa=-1.0)), "turn.kappa"),
        (FedBuff(turn=TurnStale(k_d=math.nan)), "turn.k_d"),
        (FedBuff(turn=TurnStale(k_s=-1.0)), "turn.k_s"),
    ],
)
def test_numbers_out_of_range_are_refused(rule: ArrivalRule, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^sync\.exchange\.rule\.{field} = .* Fix: ") as caught:
        rule.check("sync.exchange.rule", 4)
    assert "\n" not in str(caught.value)
