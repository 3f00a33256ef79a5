"""The fold: a pure function that makes history; an invalid commit uses its number up and changes nothing else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lowcomm.aggregate import Krum, Mean
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, LocalResidual
from lowcomm.outer import FedAdam, Nesterov, Outer
from lowcomm.store import fold as folding
from lowcomm.store import judge, keys, leases, snapshot, text
from lowcomm.store.chain_state import ChainState
from lowcomm.store.commit import Admitted, Announced, Removed
from lowcomm.store.contribution import pack, unpack
from lowcomm.store.fold import fold
from lowcomm.store.memory import MemoryObjects
from lowcomm.store.own_work import OwnWork
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.types import Contribution as Decoded
from lowcomm.types import PayloadError
from tests.support.store_chain import LAYOUTS, A, B, C, begun, commit, contribute, delta_of, held, rules, using


@pytest.mark.parametrize("codec", [Fp32(), ErrorFeedback(codec=Int4())])
def test_it_is_the_mean_and_the_outer_step(codec: Codec) -> None:
    """Over three rounds: what Mean makes of the decoded Deltas, then the outer optimizer, bit for bit."""
    law = rules(codec)
    state = begun(law)
    params = [v.clone() for v in LAYOUTS[0].views(state.fragments[0].weights).values()]
    optimizer = law.outer.build(params)
    work = {inc: OwnWork(law, inc) for inc in (A, B)}
    for k in range(3):
        ones = [contribute(state, work[inc], seed=2 * k + i) for i, inc in enumerate((A, B))]
        decoded = [
            Decoded(island=i, delta=delta_of(state, c, law), weight=w, round=0)
            for i, (c, w) in enumerate(zip(ones, (0.25, 0.75), strict=True))
        ]
        mean = Mean()(decoded)
        for p, grad in zip(params, mean.values(), strict=True):
            p.grad = grad
        optimizer.step()
        before = state.digest
        folded = fold(state, using(state, ones, [0.25, 0.75]).write(), held(*ones), law)
        assert (state.digest, dataclasses.replace(state).digest) == (before, before), "the old version is as it was"
        state = folded.state
        views = LAYOUTS[0].views(state.fragments[0].weights).values()
        assert all(torch.equal(v, p) for v, p in zip(views, params, strict=True))
        assert [c.fragment for c in folded.applied.changes] == [0]
        assert state.fragments[1].version == 0


def test_a_rule_that_must_see_each() -> None:
    law = rules(aggregator=Krum(faulty=0, best=1))
    state = begun(law, (A, B, C))
    ones = [contribute(state, OwnWork(law, inc), seed=i) for i, inc in enumerate((A, B, C))]
    after = fold(state, using(state, ones).write(), held(*ones), law).state
    deltas = [delta_of(state, c, law) for c in ones]
    chosen = law.aggregator([Decoded(island=i, delta=d, weight=1 / 3, round=0) for i, d in enumerate(deltas)])
    expected = folding.step(state.fragments[0], LAYOUTS[0].flatten(list(chosen.values())), LAYOUTS[0], law)
    assert torch.equal(after.fragments[0].weights, expected.weights)
    folded = fold(state, using(state, ones[:2]).write(), held(*ones), law)
    assert folded.applied.why is not None and "3 are needed" in folded.applied.why


def no_ops(state: ChainState, law: ChainRules) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Commits that are invalid, by what is wrong."""
    a, b, stranger = (OwnWork(law, inc) for inc in (A, B, C))
    one, two, other = contribute(state, a), contribute(state, b, seed=1), contribute(state, stranger, seed=2)
    early = contribute(state, a, seed=3, blocks=())
    lent = state.members[B].lease
    greedy = contribute(state, OwnWork(law, A), blocks=lent)
    elsewhere = contribute(dataclasses.replace(state, tokens_done=1), OwnWork(law, A))
    other_run = contribute(state, OwnWork(dataclasses.replace(law, run_id="6" * 32), A))
    later = contribute(dataclasses.replace(state, version=state.version + 1, anchors={}), OwnWork(law, A))
    nan_work = OwnWork(law, A)
    nan = contribute(state, nan_work)
    payload = bytearray(nan.payload)
    payload[64:68] = b"\x00\x00\xc0\x7f"
    sections = {"delta": bytes(payload)}
    whole, objects = pack(dataclasses.replace(nan.header, sections=(), parts=()), sections, 1 << 20)
    nan = unpack(whole.key, objects[-1][1])
    shot = Announced(version=99, key=keys.snapshot(99, A) + "manifest.json", sha256="0" * 64)
    good = using(state, [one, two])
    return {
        "nonsense": (b"nonsense", {}),
        "empty": (b"", {}),
        "another form": (good.write().replace(b'"format":1', b'"format":2'), held(one, two)),
        "another place": (dataclasses.replace(good, v=9).write(), held(one, two)),
        "another past": (dataclasses.replace(good, prev="0" * 64).write(), held(one, two)),
        "other bits": (dataclasses.replace(good, state="0" * 64).write(), held(one, two)),
        "another object": (using(state, [dataclasses.replace(one, sha256="0" * 64)]).write(), held(one)),
        "a stranger": (using(state, [other]).write(), held(other)),
        "not the next": (using(state, [early]).write(), held(early)),
        "twice": (using(state, [one, one]).write(), held(one)),
        "blocks of another": (using(state, [greedy]).write(), held(greedy)),
        "another anchor": (using(state, [elsewhere]).write(), held(elsewhere)),
        "another run": (using(state, [other_run]).write(), held(other_run)),
        "of the future": (using(state, [later]).write(), held(later)),
        "not finite": (using(state, [nan]).write(), held(nan)),
        "weights above 1": (using(state, [one, two], [0.9, 0.9]).write(), held(one, two)),
        "admits a member": (commit(state, admit=(Admitted(inc=A, name="x", base=0),)).write(), {}),
        "admits twice": (commit(state, admit=(Admitted(inc=C, name="x", base=0),) * 2).write(), {}),
        "asked in the future": (commit(state, admit=(Admitted(inc=C, name="x", base=9),)).write(), {}),
        "removes a stranger": (commit(state, remove=(Removed(inc=C, reason=""),)).write(), {}),
        "a snapshot to come": (commit(state, snapshot=shot).write(), {}),
    }  # fmt: skip


NO_OPS = sorted(no_ops(begun(rules()), rules()))


@pytest.mark.parametrize("what", NO_OPS)
def test_an_invalid_commit_only_uses_its_number_up(what: str) -> None:
    law = rules()
    state = begun(law)
    raw, objects = no_ops(state, law)[what]
    folded = fold(state, raw, objects, law)
    assert folded.applied.why is not None and "\n" not in folded.applied.why
    after = folded.state
    assert (after.version, after.prev) == (state.version + 1, text.sha256(raw))
    same = dataclasses.replace(after, version=state.version, prev=state.prev, anchors=state.anchors)
    assert same.digest == state.digest
    good = [contribute(after, OwnWork(law, A)), contribute(after, OwnWork(law, B), seed=1)]
    assert fold(after, using(after, good).write(), held(*good), law).applied.why is None, "history goes on"


def test_a_contribution_of_an_older_version_counts_until_it_is_too_old() -> None:
    law = rules(stale=2)
    state = begun(law)
    old = contribute(state, OwnWork(law, A))
    work = OwnWork(law, B)
    for k in range(law.stale + 1):
        folded = fold(state, using(state, [old]).write(), held(old), law)
        assert folded.applied.why is None
        assert folded.applied.used[0].staleness == k
        other = contribute(state, work, seed=k)
        state = fold(state, using(state, [other]).write(), held(other), law).state
    assert "can't be used" in str(fold(state, using(state, [old]).write(), held(old), law).applied.why)


def test_momentum_alone_moves_nothing() -> None:
    """Neither a commit without contributions nor one whose authors have trained nothing takes an outer step."""
    law = rules()
    state = begun(law)
    one = contribute(state, OwnWork(law, A))
    state = fold(state, using(state, [one]).write(), held(one), law).state
    idle = contribute(state, work := OwnWork(law, B), seed=1)
    for raw, objects in ((commit(state).write(), {}), (using(state, [idle], [0.0]).write(), held(idle))):
        after = fold(state, raw, objects, law).state
        assert after.fragments[0] is state.fragments[0]
    assert after.members[work.inc].settled == 1


def test_blocks_of_the_removed_are_leased_again_first() -> None:
    law = rules(blocks=7)
    state = begun(law)
    assert [m.lease for _, m in sorted(state.members.items())] == [(0, 1, 2), (3, 4, 5)]
    state = fold(state, commit(state, remove=(Removed(inc=B, reason="silent"),)).write(), {}, law).state
    assert (state.returned, state.gone, state.closing) == ((3, 4, 5), {B: 1}, False)
    one = contribute(state, work := OwnWork(law, A))
    state = fold(state, using(state, [one]).write(), held(one), law).state
    assert (state.members[A].lease, state.returned, state.next_block) == ((3, 4, 5), (), 6)
    refused = fold(state, commit(state, admit=(Admitted(inc=B, name="x", base=2),)).write(), {}, law)
    assert "was a member" in str(refused.applied.why)
    two = contribute(state, work)
    state = fold(state, using(state, [two]).write(), held(two), law).state
    assert (state.members[A].lease, state.closing, state.done) == ((6,), True, False)
    three = contribute(state, work)
    state = fold(state, using(state, [three]).write(), held(three), law).state
    assert state.done
    assert leases.wanted_of(state, state.members[A], law) == {}


@pytest.mark.parametrize("outer", [Nesterov(), FedAdam()])
@pytest.mark.parametrize("part_bytes", [1 << 20, 100])
def test_a_snapshot_goes_on_as_its_version_did(outer: Outer, part_bytes: int) -> None:
    law = rules(outer=outer)
    state, work = begun(law), OwnWork(law, A)
    first = contribute(state, work)
    state = fold(state, using(state, [first]).write(), held(first), law).state
    objects = MemoryObjects(part_bytes=part_bytes)
    writer = snapshot.SnapshotWriter(state, A, law, part_bytes)
    assert writer.go(objects)
    read = snapshot.read_manifest(objects, writer.announced.key)
    assert read is not None and read[1] == writer.announced.sha256
    loaded = snapshot.load(objects, writer.announced.key, read[0], law)
    assert loaded is not None and loaded.digest == state.digest
    one = contribute(state, work)
    raw = using(state, [one]).write()
    assert fold(loaded, raw, held(one), law).state.digest == fold(state, raw, held(one), law).state.digest


def test_a_snapshot_that_is_not_whole_is_refused() -> None:
    law = rules()
    state = begun(law)
    writer = snapshot.SnapshotWriter(state, A, law, 1 << 20)
    objects = MemoryObjects()
    assert writer.go(objects)
    key = writer.announced.key
    read = snapshot.read_manifest(objects, key)
    assert read is not None
    with pytest.raises(PayloadError, match="of run"):
        snapshot.load(objects, key, read[0], dataclasses.replace(law, run_id="6" * 32))
    huge = dataclasses.replace(read[0], files=(("state.json", 2**50, "0" * 64),))
    with pytest.raises(PayloadError, match="are possible"):
        snapshot.load(objects, key, huge, law)
    for name, _, _ in read[0].files:
        whole = objects.heap.objects.pop(keys.snapshot(1, A) + name)
        assert snapshot.load(objects, key, read[0], law) is None
        objects.heap.objects[keys.snapshot(1, A) + name] = whole[:-1] + b"?"
        with pytest.raises(PayloadError, match="not what its manifest names"):
            snapshot.load(objects, key, read[0], law)
        objects.heap.objects[keys.snapshot(1, A) + name] = whole


def test_weights_damping_and_scale() -> None:
    law, policy = rules(), Policy(mode="buffered", nominal_tokens=42)
    state = begun(law)
    old = contribute(state, OwnWork(law, A), seed=0)
    other = contribute(state, OwnWork(law, B), seed=1)
    state = fold(state, using(state, [other]).write(), held(other), law).state
    work = OwnWork(law, B)
    work.seq = 1
    fresh = contribute(state, work, seed=1)
    weights = judge.weights_of(state, [old, fresh], law, policy)
    raw = [10 / math.sqrt(2), 11.0]
    assert weights == pytest.approx([r / sum(raw) for r in raw])
    assert judge.scale_of([old, fresh], policy) == pytest.approx(21 / 42)
    assert judge.scale_of([old, fresh], Policy()) == 1.0
    assert judge.scale_of([old, fresh, fresh, fresh, fresh], policy) == 1.0
    silent = dataclasses.replace(fresh, header=dataclasses.replace(fresh.header, tokens=0, fragment=1))
    assert judge.scale_of([old, fresh, silent], policy) == pytest.approx(21 / 42)
    assert judge.scale_of([silent], policy) == 1 / policy.size


def test_a_norm_far_above_all_that_are_known_is_refused() -> None:
    law = rules()
    state, work = begun(law), {inc: OwnWork(law, inc) for inc in (A, B)}
    for k in range(judge.MIN_ROUNDS + 1):
        ones = [contribute(state, work[inc], seed=2 * k + i) for i, inc in enumerate((A, B))]
        assert judge.too_large(state, ones, 10.0) == {}
        large = dataclasses.replace(ones[1], header=dataclasses.replace(ones[1].header, norm=1000.0))
        assert set(judge.too_large(state, [ones[0], large], 10.0)) == ({B} if k >= judge.MIN_ROUNDS else set())
        state = fold(state, using(state, ones).write(), held(*ones), law).state


def test_a_norm_far_above_two_others_is_refused_from_the_first_round() -> None:
    law = rules()
    state, names = begun(law), (A, B, "c" * len(A))
    ones = [contribute(state, OwnWork(law, inc), seed=i) for i, inc in enumerate(names)]
    assert judge.too_large(state, ones, 10.0) == {}
    large = dataclasses.replace(ones[1], header=dataclasses.replace(ones[1].header, norm=1000.0))
    assert set(judge.too_large(state, [ones[0], large, ones[2]], 10.0)) == {B}
    much = dataclasses.replace(large, header=dataclasses.replace(large.header, steps=10_000 * large.header.steps))
    assert judge.too_large(state, [ones[0], much, ones[2]], 10.0) == {}


def test_fragments_that_say_no_tokens_weigh_the_same() -> None:
    law, policy = rules(), Policy()
    state = begun(law)
    for fragment, expected in ((0, [0.0, 0.0]), (1, [0.5, 0.5])):
        ones = [contribute(state, OwnWork(law, inc), fragment) for inc in (A, B)]
        silent = [dataclasses.replace(c, header=dataclasses.replace(c.header, tokens=0)) for c in ones]
        assert judge.weights_of(state, silent, law, policy) == expected
        idle = [dataclasses.replace(c, header=dataclasses.replace(c.header, norm=0.0)) for c in silent]
        assert judge.weights_of(state, idle, law, policy) == [0.0, 0.0]


def test_what_a_codec_had_held_back_is_not_lost_at_the_end() -> None:
    """A last contribution without tokens weighs as the others do on average."""
    law, policy = rules(LocalResidual(codec=Int4())), Policy()
    state = begun(law, (A, B, C))
    ones = [contribute(state, OwnWork(law, inc), seed=seed) for inc, seed in ((A, 2), (B, 4), (C, 0))]
    last = dataclasses.replace(ones[2], header=dataclasses.replace(ones[2].header, tokens=0, last=True))
    assert judge.weights_of(state, [*ones[:2], last], law, policy) == pytest.approx([12 / 39, 14 / 39, 13 / 39])
