"""When to commit: judgement that never touches safety, on the committer's own clock."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from lowcomm.store.chain_state import ChainState
from lowcomm.store.contribution import Contribution
from lowcomm.store.fold import fold
from lowcomm.store.own_work import OwnWork
from lowcomm.store.policy import Decision, View, decide, is_time, turn
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.run_file import JoinRequest
from lowcomm.store.watch import LEAST_GRACE_S, Watch
from tests.support.store_chain import A, B, C, begun, commit, contribute, held, rules, using

D = "d" * 32
POLICY = Policy(patience_s=60.0, expected_s=40.0)


class Scene:
    """A version with three members, who trains since 0 s on this committer's clock."""

    def __init__(self, mode: str = "synchronous", law: ChainRules | None = None, **changes: Any) -> None:
        self.law = law or rules()
        self.state = begun(self.law, (A, B, C))
        self.policy = dataclasses.replace(POLICY, mode=mode, **changes)
        self.work = {inc: OwnWork(self.law, inc) for inc in (A, B, C)}
        self.held: list[Contribution] = []
        self.watch = Watch(0.0)
        for inc in self.state.members:
            self.watch.heard(inc, 0.0)

    def arrives(self, inc: str, at_s: float, blocks: Any = None) -> Contribution:
        one = contribute(self.state, self.work[inc], seed=len(self.held), blocks=blocks)
        self.held = sorted([*self.held, one], key=lambda c: (c.header.inc, c.header.seq))
        self.watch.saw(one.header.key, at_s)
        self.watch.heard(inc, at_s)
        return one

    def at(self, now: float, inc: str = A, **fields: Any) -> Decision | None:
        return decide(self.view(now, inc, **fields), self.watch)

    def view(self, now: float, inc: str = A, **fields: Any) -> View:
        return View(state=self.state, rules=self.law, policy=self.policy, inc=inc, now=now, held=self.held, **fields)

    def applies(self, one: list[Contribution], now: float) -> None:
        raw = using(self.state, one).write()
        self.state = fold(self.state, raw, held(*one), self.law).state
        self.watch.applied(self.state, [c.header.key for c in one], now)
        self.held = [c for c in self.held if c not in one]


def used(decision: Decision | None) -> list[str]:
    return [] if decision is None else [u.key[20:52] for u in decision.used]


def asks(inc: str = D, state: ChainState | None = None) -> JoinRequest:
    return JoinRequest(run_id="5" * 32, name="new", inc=inc, base=0 if state is None else state.version, nonce="0" * 32)


def test_synchronous_commits_wait_for_all() -> None:
    scene = Scene()
    scene.arrives(A, 10.0)
    scene.arrives(B, 11.0)
    assert scene.at(12.0) is None
    scene.arrives(C, 13.0)
    decision = scene.at(13.0)
    assert used(decision) == [A, B, C]
    assert decision is not None and sum(u.weight for u in decision.used) == pytest.approx(1.0)


def test_a_quorum_waits_for_the_grace_time_only() -> None:
    scene = Scene()
    scene.watch.spreads.append(2.5)
    scene.arrives(A, 10.0)
    assert scene.at(10.0 + 5.1) is None, "one of three is no quorum"
    scene.arrives(B, 12.0)
    assert scene.at(14.9) is None
    assert used(scene.at(15.0)) == [A, B], "twice the spread after the first"


@pytest.mark.parametrize(("mode", "due_s"), [("synchronous", 15.0), ("timed", 20.0), ("buffered", 60.0)])
def test_who_waits_knows_when_to_look_again(mode: str, due_s: float) -> None:
    """A death costs the grace time, not what is left of a wait that has grown meanwhile."""
    scene = Scene(mode, every_s=20.0, size=3)
    scene.watch.spreads.append(2.5)
    assert scene.watch.due_at == math.inf
    first, second = sorted((A, B, C), key=lambda inc: turn(scene.view(0.0, inc)))[:2]
    for k, inc in enumerate((first, second)):
        scene.arrives(inc, 10.0 + k)
    scene.watch.fold_s = 0.2  # each turn takes 0.4 s
    assert not is_time(scene.view(12.0, second), scene.watch)
    assert scene.watch.due_at == pytest.approx(due_s)
    assert not is_time(scene.view(due_s, second), scene.watch), "the other one comes first"
    assert scene.watch.due_at == pytest.approx(due_s + 0.4)
    assert is_time(scene.view(scene.watch.due_at + 1e-9, second), scene.watch)
    scene.watch.applied(scene.state, [], due_s)
    assert scene.watch.due_at == math.inf


def test_the_grace_time_follows_the_spread_of_arrivals() -> None:
    scene = Scene()
    assert scene.watch.grace_s(scene.state, scene.policy) == 10.0, "a quarter of a round, before any"
    for k in range(6):
        ones = [scene.arrives(inc, 10.0 * k + i, blocks=()) for i, inc in enumerate((A, B, C))]
        scene.applies(ones, 10.0 * k + 3)
    assert scene.watch.grace_s(scene.state, scene.policy) == 4.0
    scene.watch.spreads.extend([0.1] * 5)
    assert scene.watch.grace_s(scene.state, scene.policy) == LEAST_GRACE_S


def test_who_is_always_just_too_late_enters_one_commit_later_and_holds_nobody_up() -> None:
    scene = Scene()
    scene.watch.spreads.append(1.0)
    on_time = [scene.arrives(A, 10.0, blocks=()), scene.arrives(B, 10.5, blocks=())]
    assert used(scene.at(12.0)) == [A, B]
    late = contribute(scene.state, scene.work[C], blocks=())
    scene.applies(on_time, 12.0)
    scene.held, scene.watch.first_seen[late.header.key] = [late], 12.1
    scene.watch.heard(C, 12.1)
    scene.arrives(A, 22.0, blocks=())
    assert scene.at(22.0) is None
    scene.arrives(B, 22.5, blocks=())
    assert used(scene.at(22.5)) == [A, B, C], "its stale one counts as its presence"


def test_after_patience_anything_is_done() -> None:
    scene = Scene()
    scene.arrives(A, 100.0)
    assert scene.at(159.0) is None
    assert used(scene.at(160.0)) == [A]


def test_the_silent_are_removed_and_the_others_are_not() -> None:
    scene = Scene()
    limit = 3 * 40.0 + 60.0
    scene.arrives(A, limit)
    scene.arrives(B, limit)
    decision = scene.at(limit + 1, inc=A)
    assert decision is not None and [r.inc for r in decision.remove] == [C]
    assert used(decision) == [A, B], "nobody waits for it any more"
    scene = Scene()
    decision = scene.at(limit + 1, inc=A)
    assert decision is not None and [r.inc for r in decision.remove] == [B, C], "never oneself"
    assert (decision.used, scene.at(limit - 1)) == ((), None)


def test_who_has_nothing_to_train_is_waited_for_by_nobody() -> None:
    scene = Scene(law=rules(blocks=2, lease_blocks=1))
    assert [m.lease for _, m in sorted(scene.state.members.items())] == [(0,), (1,), ()]
    scene.arrives(A, 10.0)
    scene.arrives(B, 10.0)
    assert used(scene.at(10.0)) == [A, B]
    scene.watch.heard(B, 1000.0)
    decision = scene.at(1000.0, inc=A)
    assert decision is not None and decision.remove == (), "C is not silent: nothing is wanted of it"


def test_buffered_commits_take_what_is_there() -> None:
    scene = Scene("buffered", size=2, nominal_tokens=40)
    first = scene.arrives(A, 10.0)
    assert scene.at(11.0) is None
    scene.arrives(A, 12.0, blocks=())
    decision = scene.at(12.0)
    assert used(decision) == [A, A]
    assert decision is not None and decision.scale == pytest.approx(21 / 40)
    assert first.header.seq == 1


def test_timed_commits_come_by_the_clock() -> None:
    scene = Scene("timed", every_s=30.0)
    scene.arrives(A, 10.0)
    assert scene.at(29.0) is None
    assert used(scene.at(30.0)) == [A]


def test_the_first_commit_waits_for_as_many_as_the_run_starts_with() -> None:
    scene = Scene(islands=2)
    scene.state = dataclasses.replace(scene.state, version=0, members={})
    for inc, at_s in ((A, 5.0), (B, 7.0)):
        scene.watch.saw(inc, at_s)
    assert scene.at(6.0, requests=[asks(A)]) is None
    decision = scene.at(7.0, requests=[asks(A), asks(B)])
    assert decision is not None and [a.inc for a in decision.admit] == [A, B]
    assert scene.at(15.0, requests=[asks(A)]) is not None, "or until the grace time is over"


def test_who_asks_is_admitted_with_the_next_commit_or_after_patience() -> None:
    scene = Scene()
    assert scene.at(59.0, requests=[asks()]) is None
    decision = scene.at(60.0, requests=[asks()])
    assert decision is not None and [a.inc for a in decision.admit] == [D]
    scene = Scene()
    for inc in (A, B, C):
        scene.arrives(inc, 10.0)
    decision = scene.at(10.0, requests=[asks()])
    assert decision is not None and [a.inc for a in decision.admit] == [D]


def test_nobody_is_admitted_when_nothing_is_left_to_give_out() -> None:
    scene = Scene(law=rules(blocks=9))
    assert scene.state.closing
    assert scene.at(100.0, requests=[asks()]) is None
    decision = scene.at(1000.0, inc=D, requests=[asks()])
    assert decision is not None and len(decision.remove) == 3
    assert [a.inc for a in decision.admit] == [D], "but those whose blocks come back are all gone"


def test_a_name_whose_contributions_are_refused_again_and_again_waits() -> None:
    scene = Scene()
    for _ in range(2):
        scene.watch.refuse("new", "the decoded w is not finite", scene.state.version)
    scene.watch.refuse("other", "silent for 5 s", scene.state.version)
    assert scene.at(60.0, requests=[asks()]) is None
    for _ in range(scene.law.stale + 1):
        scene.state = fold(scene.state, commit(scene.state).write(), {}, scene.law).state
    assert scene.at(60.0, requests=[asks()]) is not None


def test_fragments_are_committed_when_they_are_whole() -> None:
    """A member's second contribution is not used before its first, nor a fragment of which one is still missing."""
    scene = Scene()
    for inc in (A, B, C):
        scene.arrives(inc, 10.0)
    second = contribute(scene.state, scene.work[A], fragment=1, seed=9)
    scene.held = sorted([*scene.held, second], key=lambda c: (c.header.inc, c.header.seq))
    scene.watch.saw(second.header.key, 10.0)
    assert used(scene.at(10.0)) == [A, B, C], "one each, to fragment 0"
    assert used(scene.at(70.0)) == [A, A, B, C], "after patience all"


def test_a_wish_to_stop_is_passed_on_with_what_is_there() -> None:
    scene = Scene()
    scene.arrives(A, 10.0)
    decision = scene.at(10.0, stop=True, requests=[asks()])
    assert decision is not None and decision.stop
    assert (used(decision), decision.admit) == ([A], ())


def test_committers_take_turns() -> None:
    scene = Scene()
    for inc in (A, B, C):
        scene.arrives(inc, 10.0)
    scene.watch.request_s, scene.watch.fold_s = 1.0, 1.5
    times = []
    for inc in (A, B, C):
        scene.watch.ready_since = None
        times.append(next(t for t in range(20) if scene.at(10.0 + t, inc=inc) is not None))
    assert sorted(times) == [0, 5, 10]
