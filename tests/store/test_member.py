"""Members over a store in memory, on a virtual clock: they come and go, and one history is made."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch

from lowcomm.arrival import ArrivalRule, Decoupled, FedBuff, Timed, TokenBatch
from lowcomm.codec import ErrorFeedback, Int4, LocalResidual
from lowcomm.store import fold as folding
from lowcomm.store import keys, policy, text
from lowcomm.store.commit import Commit
from lowcomm.store.faulty import FaultyHeap
from lowcomm.store.follower import BrokenRunError
from lowcomm.store.garbage import is_garbage
from lowcomm.store.memory import Heap, MemoryObjects
from lowcomm.store.own_work import OwnWork
from lowcomm.store.rules import Policy
from lowcomm.store.start import read_run, rules_of
from lowcomm.store.surroundings import Phase
from lowcomm.types import ConfigError, DivergenceError
from tests.methods import name
from tests.support.store_toy import ToyIsland, Village, toy_rules, toy_run, whole_counts

POLICY = Policy(islands=3, patience_s=20.0, expected_s=4.0, norm_bound=None, snapshot_every_s=60.0)


@pytest.fixture(autouse=True)
def _counts() -> Iterator[None]:
    with whole_counts():
        yield


def village(islands: int = 3, heap: Heap | None = None, modes: Any = None, **changes: Any) -> Village:
    return Village(toy_rules(**changes), dataclasses.replace(POLICY, **(modes or {})), islands, heap)


def weights(toy: ToyIsland) -> list[list[int]]:
    return [[round(-w) for w in f.weights.tolist()] for f in toy.island.state.fragments]


def check_ended(here: Village) -> None:
    """All who live left with the same bits, in which each block is once."""
    states = [toy.island.state for toy in here.alive]
    assert all(toy.left for toy in here.alive)
    assert len({state.digest for state in states}) == 1
    assert weights(here.alive[0])[0] == [1] * here.rules.layouts[0].numel


@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.parametrize("mode", ["synchronous", "buffered", "timed"])
def test_a_run_trains_each_block_once(mode: str, fragments: int) -> None:
    here = village(fragments=fragments, modes={"mode": mode, "every_s": 2.0})
    assert here.go().ended
    check_ended(here)
    assert weights(here.toys[0]) == [[1] * 12] * fragments
    last = here.toys[0].island.state
    assert keys.commit(last.version) in here.heap.objects, "the last version is announced"


@pytest.mark.parametrize("rule", [Timed(every_s=2.0), Decoupled(), TokenBatch(tokens=8), FedBuff(size=2)], ids=name)
def test_a_run_with_a_rule_trains_each_block_once(rule: ArrivalRule) -> None:
    here = village(fragments=2, modes={"mode": "buffered", "rule": rule})
    assert here.go().ended
    check_ended(here)
    assert weights(here.toys[0]) == [[1] * 12] * 2


def test_synchronous_rounds_have_everybody() -> None:
    here = village(blocks=24)
    here.go()
    rounds = [Commit.read(here.heap.objects[keys.commit(v)]) for v in range(here.toys[0].island.version)]
    assert [len(c.admit) for c in rounds] == [3] + [0] * 4
    assert [len(c.used) for c in rounds] == [0] + [3] * 4
    assert all(c.waited_s < POLICY.patience_s for c in rounds)


def test_requests_of_a_round_are_bounded() -> None:
    """20 + (n - 1)(1 + p) + p a round and island, looks aside: polls are the caller's."""
    here = village(blocks=60)
    before = {}

    def counted() -> bool:
        for k, toy in enumerate(here.toys):
            if toy.island.follower.state is not None and toy.island.version == 3:
                before.setdefault(k, (toy.island.objects.counts.puts, toy.island.objects.counts.up_bytes))
        return False

    here.go(until=counted)
    rounds = here.toys[0].island.version - 3
    for k, toy in enumerate(here.toys):
        puts = toy.island.objects.counts.puts - before[k][0]
        assert puts <= 6 * rounds, "a contribution, perhaps a commit, now and then a snapshot of three files"


def test_one_dies_and_one_comes() -> None:
    here = village(blocks=40, lease_blocks=3)
    here.go(until=lambda: any(t.island.follower.state is not None and t.island.version >= 3 for t in here.toys))
    here.dead.add(1)
    joiner = here.add()
    assert here.go().ended
    check_ended(here)
    assert joiner.island.work.seq > 0, "who came contributed"
    commits = [Commit.read(here.heap.objects[keys.commit(v)]) for v in range(joiner.island.version)]
    removed = [r for c in commits for r in c.remove]
    assert [r.inc for r in removed] == [here.toys[1].island.inc]
    assert removed[0].reason.startswith("silent")


def test_everybody_dies_and_the_next_start_goes_on() -> None:
    here = village(blocks=20)
    here.go(until=lambda: any(t.island.follower.state is not None and t.island.version >= 2 for t in here.toys))
    here.dead |= {0, 1, 2}
    here.add()
    assert here.go().ended
    check_ended(here)


def test_frozen_for_long_it_comes_back_as_somebody_else() -> None:
    here = village(blocks=60)
    here.go(until=lambda: any(t.island.follower.state is not None and t.island.version >= 3 for t in here.toys))
    before = here.toys[2].island.inc
    here.period_s[2] = 60.0
    here.go(until=lambda: before not in here.toys[0].island.members)
    here.period_s[2] = 0.1
    assert here.go().ended
    check_ended(here)
    assert here.toys[2].island.inc != before


def test_a_stop_ends_with_what_is_held() -> None:
    here = village(blocks=200, lease_blocks=4)
    here.go(until=lambda: all(t.unsent and t.island.version >= 3 for t in here.toys))
    MemoryObjects(here.heap).put_new(keys.STOP, b"{}")
    held = {b for toy in here.toys for b in (*toy.unsent, *toy.island.work.blocks())}
    assert here.go().ended
    state = here.toys[0].island.state
    assert state.stopping and state.done
    counts = weights(here.toys[0])[0]
    assert set(counts) == {0, 1} and all(counts[b] == 1 for b in held)
    assert len({toy.island.state.digest for toy in here.toys}) == 1


def test_sites_with_text_of_their_own_stop_at_the_tokens() -> None:
    here = village(blocks=None, target_tokens=30)
    rng = random.Random(0)

    def train() -> bool:
        for toy in here.toys:
            if toy.island.phase == Phase.MEMBER and len(toy.unsent) < 4:
                toy.train_some(rng)
            if toy.may_contribute() and len(toy.unsent) >= 3:
                toy.contribute()
        return False

    assert here.go(until=train).ended
    state = here.toys[0].island.state
    assert state.tokens_done >= 30 and state.done
    assert sum(weights(here.toys[0])[0]) == sum(int(t.trained[0].sum()) for t in here.toys)


@pytest.mark.parametrize("codec", [ErrorFeedback(codec=Int4()), LocalResidual(codec=Int4())])
def test_lossy_codecs_lose_nothing(codec: Any) -> None:
    """What was trained was sent, is unsent or in the error, whatever is settled when; but the last merge's rounding."""
    here = village(blocks=30, codec=codec, lease_blocks=3, modes={"mode": "buffered"})
    decoded: dict[str, torch.Tensor] = {}
    depart = OwnWork.depart

    def seen(work: OwnWork, state: Any, *arguments: Any) -> None:
        depart(work, state, *arguments)
        one = list(work._sent.values())[-1]
        delta = folding.decode(one, here.rules.layouts[0], folding.round_of(state, one, here.rules), here.rules)
        decoded[one.header.key] = torch.cat([t.reshape(-1) for t in delta.values()])

    def check() -> bool:
        for toy in here.toys:
            work = toy.island.work
            if toy.inc == work.inc and toy.island.phase == Phase.MEMBER:
                sent = sum((d for key, d in decoded.items() if f"/{work.inc}-" in key), torch.zeros(30))
                error = work.states[0].get("error", torch.zeros(30))
                last = any(one.last for one in work.pending.values()) or toy.island.closing
                assert torch.allclose(toy.trained[0], sent + error + toy.delta(0), atol=0.02 if last else 1e-4)
        return False

    with patch.object(OwnWork, "depart", seen):
        assert here.go(until=check).ended
    total = -here.toys[0].island.state.fragments[0].weights
    tolerance = 0.05 if isinstance(codec, LocalResidual) else 0.5
    assert float((total - 1).abs().max()) < tolerance
    assert len({toy.island.state.digest for toy in here.toys}) == 1


def test_a_delta_that_is_not_finite_heals_its_island() -> None:
    here = village(blocks=24)
    here.go(until=lambda: any(t.island.phase == Phase.MEMBER and t.unsent for t in here.toys))
    toy = next(t for t in here.toys if t.unsent)
    before = toy.island.inc
    toy.local[0][0][3] = torch.nan
    toy.contribute()
    assert (toy.island.phase, toy.island.why) == (Phase.HEAL, "the Delta of fragment 0 is not finite")
    assert here.go().ended
    check_ended(here)
    assert toy.island.inc != before


def test_a_refused_contribution_removes_its_author() -> None:
    here = village(blocks=24)
    here.go(until=lambda: any(t.island.phase == Phase.MEMBER and t.unsent for t in here.toys))
    toy = next(t for t in here.toys if t.unsent)
    bad = toy.island.inc
    key = keys.delta(toy.island.version, bad, toy.island.work.seq + 1)
    MemoryObjects(here.heap).put_new(key, b"nonsense")
    assert here.go().ended
    check_ended(here)
    commits = [Commit.read(here.heap.objects[keys.commit(v)]) for v in range(toy.island.version)]
    reasons = [r.reason for c in commits for r in c.remove if r.inc == bad]
    assert len(reasons) == 1 and "begins with b'nons'" in reasons[0]


def test_a_payload_that_can_not_be_decoded_removes_its_author() -> None:
    """It fits its header and its author sent it: a broken encoder."""
    here = village(blocks=24)
    here.go(until=lambda: any(t.island.phase == Phase.MEMBER and t.unsent for t in here.toys))
    toy = next(t for t in here.toys if t.unsent)
    bad, encode = toy.island.inc, OwnWork.encode

    def broken(work: OwnWork, *arguments: Any) -> Any:
        header, sections = encode(work, *arguments)
        data = bytearray(sections["delta"])
        data[70] ^= 1
        return header, {**sections, "delta": bytes(data)}

    with patch.object(OwnWork, "encode", broken):
        toy.contribute()
    assert here.go().ended
    check_ended(here)
    commits = [Commit.read(here.heap.objects[keys.commit(v)]) for v in range(toy.island.version)]
    assert ["checksum" in r.reason for c in commits for r in c.remove if r.inc == bad] == [True]


def test_a_commit_of_nonsense_is_passed_over() -> None:
    here = village(blocks=24)
    here.go(until=lambda: any(t.island.follower.state is not None and t.island.version >= 2 for t in here.toys))
    version = max(t.island.version for t in here.toys)
    here.heap.create(keys.commit(version), b"\x00" * 10)
    assert here.go().ended
    check_ended(here)
    assert here.heap.objects[keys.commit(version)] == b"\x00" * 10


def test_a_store_that_changes_history_is_noticed() -> None:
    here = village(1, blocks=40, modes={"islands": 1})
    toy = here.toys[0]

    def broken() -> None:
        state = toy.island.state
        before = Commit.read(here.heap.objects[keys.commit(state.version - 1)])
        other = dataclasses.replace(before, nonce="9" * 32).write()
        here.heap.objects[keys.commit(state.version - 1)] = other
        raw = dataclasses.replace(before, v=state.version, prev=text.sha256(other), used=(), admit=()).write()
        here.heap.objects[keys.commit(state.version)] = raw

    here.go(until=lambda: toy.island.follower.state is not None and toy.island.version >= 3)
    broken()
    toy.poll()
    assert toy.island.phase == Phase.HEAL and "was changed in the store" in toy.island.why
    here.go(until=lambda: toy.island.phase == Phase.JOIN)
    broken()
    with pytest.raises(BrokenRunError, match="breaks its promise"):
        toy.poll()


def test_a_machine_that_folds_to_other_bits_is_told() -> None:
    here = village(2, blocks=60, modes={"islands": 2})
    other = here.add()
    step = folding.step

    def wrong(*arguments: Any) -> Any:
        after = step(*arguments)
        return dataclasses.replace(after, weights=after.weights * (1 + 2**-20))

    turn = other.step

    def turned() -> None:
        with patch.object(folding, "step", wrong):
            turn()

    other.step = turned  # pyright: ignore[reportAttributeAccessIssue]
    here.period_s[2] = 2.0
    with pytest.raises(DivergenceError, match="folds to other bits"):
        here.go()
    here.dead.add(2)
    assert here.go().ended
    check_ended(here)


def test_a_payload_that_nobody_has_ends_the_run() -> None:
    here = village(1, blocks=40, modes={"islands": 1})
    here.go(until=lambda: here.toys[0].island.follower.state is not None and here.toys[0].island.version >= 3)
    for key in [k for k in here.heap.objects if k.startswith(("deltas/", "snapshots/"))]:
        if key.startswith("deltas/") or keys.version_of_snapshot(key) != 0:
            del here.heap.objects[key]
    here.dead.add(0)
    here.add(period_s=5.0)
    with pytest.raises(BrokenRunError, match="can't be made"):
        here.go()


def test_garbage_goes_and_commits_stay() -> None:
    here = village(blocks=120, stale=2, keep=2)
    assert here.go().ended
    check_ended(here)
    state = here.toys[0].island.state
    assert state.horizon(2) > 0
    assert sum(t.island.upkeep.deleted for t in here.toys) > 0
    assert [k for k in sorted(here.heap.objects) if k.startswith("commits/")] == [
        keys.commit(v) for v in range(state.version + 1)
    ]
    assert not any(is_garbage(k, state, here.rules) for k in here.heap.objects if k.startswith("commits/"))


def test_the_order_of_committers_changes_with_the_version() -> None:
    here = village()
    here.go(until=lambda: all(t.island.follower.state is not None and len(t.island.members) == 3 for t in here.toys))
    first: set[str] = set()
    for version in range(20):
        state = dataclasses.replace(here.toys[0].island.state, version=version)
        views = [policy.View(state=state, rules=here.rules, policy=POLICY, inc=i, now=0.0) for i in state.members]
        turns = [policy.turn(view) for view in views]
        assert sorted(turns) == [0, 1, 2]
        first.add(views[turns.index(0)].inc)
    assert len(first) == 3


def test_a_replayed_order_of_turns_gives_the_same_bits() -> None:
    logs: list[Any] = []
    objects: list[dict[str, bytes]] = []
    for replay in (False, True):
        here = village(blocks=24)
        here.period_s = [0.1, 0.17, 0.31]
        turns = [lambda k=k, here=here: here.turn(k) for k in range(3)]
        if replay:
            logs.append(here.simulation.replay(turns, logs[0].turns))
        else:
            logs.append(here.simulation.run(turns))
        objects.append(here.heap.objects)
        check_ended(here)
    assert logs[0] == logs[1]
    assert objects[0] == objects[1]


def test_a_store_that_is_down_for_a_while_loses_nobody() -> None:
    heap = FaultyHeap(random.Random(0))
    heap.chaos = False
    here = village(blocks=40, heap=heap)
    here.go(until=lambda: all(t.island.phase == Phase.MEMBER for t in here.toys))
    incs = {t.island.inc for t in here.toys}

    def flaky(k: int) -> Any:
        heap.down = 5.0 < here.simulation.now_s < 25.0
        try:
            return here.turn(k)
        except Exception as error:
            assert heap.down, error
            return 0.5

    assert here.simulation.run([lambda k=k: flaky(k) for k in range(3)]).ended
    check_ended(here)
    assert {t.island.inc for t in here.toys} == incs


def test_a_second_run_under_one_prefix_is_refused() -> None:
    heap, law = Heap(), toy_rules()
    objects = MemoryObjects(heap)
    assert read_run(objects) is None
    run = toy_run(objects, law)
    assert toy_run(objects, law) == run == read_run(objects)
    with pytest.raises(ConfigError, match="holds another run"):
        toy_run(objects, dataclasses.replace(law, run_id="6" * 32))
    assert rules_of(run, toy_rules()) == law
    with pytest.raises(ConfigError, match="codec"):
        rules_of(run, toy_rules(codec=Int4()))
    with pytest.raises(ConfigError, match="arithmetic"):
        rules_of(dataclasses.replace(run, arithmetic="gpu-bf16"), toy_rules())
    heap.objects[keys.RUN] = b"{}"
    with pytest.raises(ConfigError, match="can't be read"):
        read_run(objects)


def commits_of(here: Village) -> list[Commit]:
    found = (here.heap.objects.get(keys.commit(v)) for v in range(here.alive[0].island.version))
    return [Commit.read(raw) for raw in found if raw is not None]


def later_than(here: Village, version: int) -> Any:
    return lambda: any(t.island.follower.state is not None and t.island.version >= version for t in here.alive)


def goes(here: Village, k: int, *, waits: bool) -> bool:
    """A member leaves with a word; whether it is out of it."""
    left = here.toys[k].island.leave(waits=waits)
    if left:
        here.dead.add(k)
    return left


def test_who_leaves_with_a_word_is_not_waited_for() -> None:
    here = village(blocks=40, lease_blocks=3, modes={"patience_s": 500.0})
    here.go(until=lambda: later_than(here, 3)() and here.toys[1].island.phase == Phase.MEMBER)
    inc, name = here.toys[1].island.inc, here.toys[1].island.around.name
    assert goes(here, 1, waits=False)
    assert here.go().ended
    check_ended(here)
    assert here.simulation.now_s < POLICY.expected_s * 10, "nobody waited for its silence"
    commits = commits_of(here)
    assert [(r.inc, r.reason) for c in commits for r in c.remove] == [(inc, "it left")]
    assert all(not toy.island.watch.refused.get(name) for toy in here.alive), "it may come back under its name"


def test_what_is_pending_is_used_before_its_author_leaves() -> None:
    here = village(blocks=60)
    island = here.toys[1].island
    here.go(until=lambda: island.phase == Phase.MEMBER and bool(island.work.pending))
    sent = set(island.work._sent) | {k for k in here.heap.objects if f"/{island.inc}-" in k}
    end = here.simulation.now_s + 60.0
    here.go(until=lambda: goes(here, 1, waits=here.simulation.now_s < end) if 1 not in here.dead else True)
    assert here.go().ended
    check_ended(here)
    used = {u.key for c in commits_of(here) for u in c.used}
    assert sent and sent <= used


def test_who_leaves_before_it_is_let_in_takes_its_request_back() -> None:
    here = village(blocks=40)
    here.go(until=later_than(here, 2))
    joiner = here.add()
    here.go(until=lambda: joiner.island.phase == Phase.JOIN and joiner.island.joining.seen)
    if joiner.island.phase == Phase.JOIN and joiner.island.me is None:
        assert joiner.island.leave(waits=True)
        assert not [k for k in here.heap.objects if k.startswith("joins/") and joiner.island.inc in k]
    here.dead.add(3)
    assert here.go().ended
    check_ended(here)
    assert "n3" not in {a.name for c in commits_of(here) for a in c.admit}


def test_the_last_member_may_leave_and_the_next_start_goes_on() -> None:
    here = village(1, blocks=30, modes={"islands": 1})
    here.go(until=later_than(here, 3))
    assert goes(here, 0, waits=False)
    before = here.simulation.now_s
    here.add()
    assert here.go().ended
    check_ended(here)
    assert here.simulation.now_s - before < POLICY.patience_s, "nobody is there to be waited for"


def test_ones_own_contribution_that_was_altered_on_its_way_is_not_committed() -> None:
    """Its author holds what it sent; the others would read something else, and a commit of it would fork history."""
    here = village(1, blocks=24, modes={"islands": 1})  # it commits what it sends itself
    put = MemoryObjects.put_new
    altered: list[str] = []

    def altering(self: MemoryObjects, key: str, data: bytes) -> Any:
        if key.startswith("deltas/") and not altered:
            altered.append(key)
            data = data[:-1] + bytes([data[-1] ^ 1])
        return put(self, key, data)

    with patch.object(MemoryObjects, "put_new", altering):
        assert here.go().ended
    check_ended(here)
    assert altered and not [u for c in commits_of(here) for u in c.used if u.key == altered[0]]


def test_a_payload_that_was_damaged_after_some_have_applied_it_is_healed_from_a_snapshot() -> None:
    """Whoever comes later must not take its commit for nonsense: the others have it."""
    here = village(blocks=80, modes={"snapshot_every_s": 5.0, "patience_s": 4.0})
    here.go(until=later_than(here, 5))
    used = commits_of(here)[3].used[0].key
    raw = here.heap.objects[used]
    here.heap.objects[used] = raw[:-1] + bytes([raw[-1] ^ 1])
    digests: dict[int, set[str]] = {}

    def watched() -> bool:
        for toy in here.toys:
            if toy.island.follower.state is not None:
                digests.setdefault(toy.island.version, set()).add(toy.island.state.digest)
        return False

    here.add()
    assert here.go(until=watched).ended
    check_ended(here)
    assert {v: found for v, found in digests.items() if len(found) > 1} == {}


def test_behind_a_hole_nothing_is_created_and_the_run_says_so() -> None:
    here = village(blocks=60)
    here.go(until=later_than(here, 6))
    here.dead |= {0, 1, 2}
    version = max(v for k in here.heap.objects if (v := keys.version_of_commit(k)) is not None)
    shots = {k: v for k in here.heap.objects if (v := keys.version_of_snapshot(k)) is not None}
    for key in [k for k, v in shots.items() if v > min(shots.values())]:
        del here.heap.objects[key]
    assert min(shots.values()) < version - 1
    missing = keys.commit(version - 1)
    del here.heap.objects[missing]
    here.add()
    with pytest.raises(BrokenRunError, match=f"commit {version - 1} is missing, and commit {version} is there"):
        here.go()
    assert missing not in here.heap.objects


def test_who_healed_takes_its_former_self_out_so_that_nobody_waits_for_it() -> None:
    here = village(blocks=40, modes={"patience_s": 500.0})
    toy = here.toys[2]
    here.go(until=lambda: toy.island.phase == Phase.MEMBER and bool(toy.unsent))
    former = toy.island.inc
    toy.local[0][0][3] = torch.nan
    toy.contribute()
    assert here.go().ended
    check_ended(here)
    assert here.simulation.now_s < POLICY.expected_s * 10
    reasons = [(r.inc, r.reason) for c in commits_of(here) for r in c.remove]
    assert reasons == [(former, "it healed as somebody new: the Delta of fragment 0 is not finite")]
