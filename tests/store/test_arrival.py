"""Modes of `lowcomm/arrival` over a store: the same rules, written into commits and folded by everybody."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lowcomm.arrival import (
    AnarchicSilos,
    ArrivalRule,
    BackupWorkers,
    Decoupled,
    FedBuff,
    FedCompass,
    Timed,
    TokenBatch,
    TurnStale,
)
from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import RunConfig, SyncConfig
from lowcomm.config_file import to_dict
from lowcomm.config_read import read_config
from lowcomm.exchange.store import Store
from lowcomm.outer import SGD, HeLoCo, Nesterov
from lowcomm.store import judge
from lowcomm.store.contribution import Contribution
from lowcomm.store.fold import fold
from lowcomm.store.own_work import OwnWork
from lowcomm.store.rules import Policy
from lowcomm.storerun.plan import policy_of
from lowcomm.sync.compatibility import check_spec
from lowcomm.types import ConfigError
from tests.methods import ARRIVALS, name
from tests.store.test_policy import POLICY, Scene, used
from tests.support.store_chain import A, B, C, begun, contribute, delta_of, held, rules, using


def scene(rule: ArrivalRule) -> Scene:
    found = Scene()
    found.policy = dataclasses.replace(POLICY, mode="buffered", rule=rule)
    return found


def says(one: Contribution, **fields: Any) -> Contribution:
    return dataclasses.replace(one, header=dataclasses.replace(one.header, **fields))


def test_a_timed_rule_is_the_timed_mode() -> None:
    one, other = scene(Timed(every_s=30.0)), Scene("timed", every_s=30.0)
    for each in (one, other):
        each.arrives(A, 10.0)
        assert each.at(29.0) is None
        assert used(each.at(30.0)) == [A]


def test_a_quorum_and_a_grace_window_that_costs_nobody_compute() -> None:
    """Half of three members, and half of the 40 s round of the first who contributed."""

    def arrived(*authors: tuple[str, float]) -> Scene:
        here = scene(Decoupled(quorum=0.5, slack=0.5))
        for inc, at_s in authors:
            here.arrives(inc, at_s)
            here.held = [says(c, expected_s=40.0) for c in here.held]
        return here

    here = arrived((A, 10.0), (B, 15.0))
    assert here.at(29.9) is None
    assert used(here.at(30.0)) == [A, B]
    assert arrived((A, 10.0)).at(50.0) is None, "one of three is no quorum"
    assert used(arrived((A, 10.0), (B, 15.0), (C, 16.0)).at(16.0)) == [A, B, C], "nobody is missing"


def test_a_round_that_ends_by_tokens() -> None:
    here = scene(TokenBatch(tokens=21))
    here.arrives(A, 10.0)
    assert here.at(11.0) is None
    here.arrives(B, 12.0)
    decision = here.at(12.0)
    assert used(decision) == [A, B] and decision is not None
    assert [u.weight for u in decision.used] == pytest.approx([10 / 21, 11 / 21])
    assert decision.scale == pytest.approx(1.0)


def test_patience_and_the_end_hold_for_rules_as_well() -> None:
    here = scene(FedBuff(size=3))
    here.arrives(A, 10.0)
    assert here.at(69.0) is None and used(here.at(70.0)) == [A]
    here.state = dataclasses.replace(here.state, closing=True)
    here.arrives(B, 11.0)
    assert here.at(11.0) is None
    here.arrives(C, 11.0)
    assert used(here.at(11.0)) == [A, B, C]


@pytest.mark.parametrize("rule", [r for r in ARRIVALS if not r.keeps_latest], ids=name)
def test_a_commit_moves_the_weights_as_the_log_would(rule: ArrivalRule) -> None:
    """With SGD of rate 1: w - scale sum weight Delta, with the rule's own numbers; a stale one among them."""
    rule = dataclasses.replace(rule, turn=None)
    law = rules(outer=SGD(lr=1.0))
    policy, state = Policy(rule=rule), begun(law, (A, B, C))
    works = {inc: OwnWork(law, inc) for inc in (A, B, C)}
    old = contribute(state, works[A], seed=0)
    first = contribute(state, works[B], seed=1)
    state = fold(state, using(state, [first]).write(), held(first), law).state
    ones = [old, contribute(state, works[B], seed=2, blocks=()), contribute(state, works[C], seed=3)]
    weights, scale = judge.weigh(state, ones, law, policy)
    assert sum(weights) <= 1 + 1e-12 and all(w > 0 for w in weights)
    now = judge.moment(state, ones, state.members, rules=law)
    assert [x.staleness for x in now.here] == [1, 0, 0]
    raw = [rule.weight(x, now) for x in now.here]
    factor = rule.scale(now.here, math.fsum(raw))
    expected = state.fragments[0].weights.double()
    for r, one in zip(raw, ones, strict=True):
        expected = expected - factor * r * _flat(delta_of(state, one, law)).double()
    after = fold(state, using(state, ones, weights, scale=scale).write(), held(*ones), law)
    assert after.applied.why is None
    torch.testing.assert_close(after.state.fragments[0].weights.double(), expected, rtol=1e-5, atol=1e-5)


def _flat(delta: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([d.reshape(-1) for d in delta.values()])


def test_fragments_that_are_to_move_less_have_smaller_weights() -> None:
    """A commit has one scale, and a rule one for each fragment."""
    law, policy = rules(), Policy(rule=FedBuff(size=4, staleness="constant"))
    state = begun(law)
    works = {inc: OwnWork(law, inc) for inc in (A, B)}
    ones = [contribute(state, works[A]), contribute(state, works[A], 1), contribute(state, works[B])]
    weights, scale = judge.weigh(state, ones, law, policy)
    assert [w * scale for w in weights] == pytest.approx([0.25, 0.25, 0.25])
    assert scale == pytest.approx(0.5)


def test_the_turn_of_stale_deltas_is_a_part_of_the_fold() -> None:
    turn = TurnStale(c_ok=1.0, k_d=1.0)
    law, plain = rules(outer=HeLoCo(lr=1.0, momentum=0.5), turn=turn), rules(outer=HeLoCo(lr=1.0, momentum=0.5))
    states = {}
    for each in (law, plain):
        state = begun(each)
        a, b = OwnWork(each, A), OwnWork(each, B)
        old, fresh = contribute(state, a, seed=0), contribute(state, b, seed=1)
        state = fold(state, using(state, [fresh]).write(), held(fresh), each).state
        momentum = state.fragments[0].outer["outer.0.momentum_buffer"]
        after = fold(state, using(state, [old]).write(), held(old), each)
        assert after.applied.why is None
        states[each is law] = after.state.fragments[0].weights
        if each is law:
            delta = delta_of(state, old, each)
            expected = turn([delta["w"]], [momentum], 1)[0]
            m = 0.5 * momentum + 0.5 * expected
            moved = state.fragments[0].weights[:12] - after.state.fragments[0].weights[:12]
            torch.testing.assert_close(moved.view(4, 3), expected + 0.5 * m)
            again = fold(state, using(state, [old]).write(), held(old), each)
            assert again.state.digest == after.state.digest
    assert not torch.equal(states[True], states[False])


def test_a_rule_goes_through_a_runs_configuration() -> None:
    rule = FedBuff(size=3, turn=TurnStale(k_d=0.25))
    config = RunConfig(sync=SyncConfig(outer=HeLoCo(), exchange=Store(rule=rule), codec=ErrorFeedback(codec=Int4())))
    assert read_config(to_dict(config)) == config
    policy = policy_of(config, 4)
    assert policy.rule == rule and policy.pending == 2 and "rule" not in policy.as_json()
    assert Policy(**policy.as_json(), rule=rule) == policy


def test_what_does_not_go_together_is_refused() -> None:
    def refused(match: str, store: Store, **sync: Any) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            store.check(3)
            check_spec(SyncConfig(exchange=store, **sync).spec())
        assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)

    refused(r"exchange\.mode = 'timed' is not allowed", Store(rule=Timed(), mode="timed"))
    refused(r"exchange\.rule\.every_s = 0", Store(rule=Timed(every_s=0.0)))
    refused(r"sync\.outer = .*it has none", Store(rule=FedBuff(turn=TurnStale())), outer=SGD())
    refused(r"exchange\.rule = AnarchicSilos", Store(rule=AnarchicSilos()))
    refused(r"exchange\.rule = FedCompass.*TokenBatch", Store(rule=FedCompass()))
    refused(r"exchange\.rule = BackupWorkers.*Decoupled", Store(rule=BackupWorkers()))
    refused(r"exchange\.rule\.even = True", Store(rule=FedBuff(even=True)))
    assert not Store(rule=Timed()).waits_for_all and Store().waits_for_all
    check_spec(SyncConfig(exchange=Store(rule=FedBuff(turn=TurnStale())), outer=Nesterov()).spec())
