"""Published versions: patches and anchors lose no bit, damage is seen and never applied, and members publish them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.store.chain_state import ChainState
from lowcomm.store.faulty import Faults, FaultyHeap
from lowcomm.store.memory import Heap, MemoryObjects
from lowcomm.store.objects import Objects
from lowcomm.store.open import open_objects
from lowcomm.store.patch_code import (
    Bits,
    Packed,
    apply_patch,
    bits_of,
    digest_of,
    pack_anchor,
    pack_patch,
    unpack_anchor,
    values_of,
)
from lowcomm.store.published import PATCHES, Head, HeadKey, garbage, read_key, upload_of
from lowcomm.store.publisher import Publisher
from lowcomm.store.rules import Policy
from lowcomm.store.subscriber import MOST_TRIES, Subscriber
from lowcomm.types import PayloadError
from tests.support.s3 import BUCKET, bucket
from tests.support.store_chain import LAYOUTS, A, B, begun, rules
from tests.support.store_checker import World

RUN = "5" * 32
SIZES = [layout.numel for layout in LAYOUTS]


def drawn(seed: int, sizes: list[int] = SIZES) -> list[Bits]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 1 << 16, size, dtype=np.uint16) for size in sizes]


def moved(base: list[Bits], share: float, seed: int, *, far: bool = False) -> list[Bits]:
    """A version in which this share of the entries has moved, by one step, or (far) to anything."""
    rng = np.random.default_rng(seed)
    found = []
    for bits in base:
        here = rng.random(len(bits)) < share
        by = rng.integers(1, 1 << 16, len(bits), dtype=np.uint16) if far else rng.choice([1, 0xFFFF], len(bits))
        found.append(np.where(here, bits + by.astype(np.uint16), bits))
    return found


def copies(fragments: list[Bits]) -> list[Bits]:
    return [bits.copy() for bits in fragments]


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=3),
    share=st.sampled_from([0.0, 0.001, 0.03, 0.5, 1.0]),
    far=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_patch_leads_to_the_same_bits(sizes: list[int], share: float, far: bool, seed: int) -> None:
    base = drawn(seed, sizes)
    new = moved(base, share, seed, far=far)
    packed = pack_patch(base, new)
    assert packed.changed == sum(int((a != b).sum()) for a, b in zip(base, new, strict=True))
    held = copies(base)
    apply_patch(held, packed, digest_of(new))
    assert all(np.array_equal(a, b) for a, b in zip(held, new, strict=True))
    whole = unpack_anchor(sizes, pack_anchor(new))
    assert all(np.array_equal(a, b) for a, b in zip(whole, new, strict=True))


def test_values_come_in_the_shorter_form() -> None:
    base = drawn(0, [20_000])
    assert pack_patch(base, moved(base, 0.05, 1)).form == "steps"
    constant = [np.where(np.arange(20_000) % 3 == 0, np.uint16(7), base[0])]
    assert pack_patch(base, constant).form == "bits"


def test_bf16_rounds_as_torch_does_and_every_bit_pattern_is_kept() -> None:
    flat = torch.randn(1000) * 1e-3
    assert torch.equal(values_of(bits_of(flat)), flat.to(torch.bfloat16))
    every = np.arange(1 << 16, dtype=np.uint16)  # NaNs and -0.0 among them
    held = [np.zeros_like(every)]
    apply_patch(held, pack_patch(held, [every]), digest_of([every]))
    assert np.array_equal(held[0], every)


@settings(max_examples=60)
@given(at=st.integers(0, 10**6), by=st.integers(1, 255), cut=st.booleans())
def test_a_damaged_body_changes_nothing(at: int, by: int, cut: bool) -> None:
    base = drawn(3)
    new = moved(base, 0.5, 4)
    packed, digest, held = pack_patch(base, new), digest_of(new), copies(base)
    body = bytearray(packed.body)
    body[at % len(body)] ^= by
    damaged = dataclasses.replace(packed, body=bytes(body[: at % len(body)] if cut else body))
    try:
        apply_patch(held, damaged, digest)
    except PayloadError:
        assert all(np.array_equal(a, b) for a, b in zip(held, base, strict=True))
    else:  # zstd does not mind the bit
        assert all(np.array_equal(a, b) for a, b in zip(held, new, strict=True))


def test_streams_that_lie_are_refused() -> None:
    base = drawn(5, [1000])
    packed = pack_patch(base, moved(base, 0.5, 6))
    far = dataclasses.replace(packed, sizes=((10**9, packed.sizes[0][1]), *packed.sizes[1:]))
    for wrong in (far, dataclasses.replace(packed, sizes=packed.sizes[:-1])):
        with pytest.raises(PayloadError):
            apply_patch(copies(base), wrong, digest_of(base))
    with pytest.raises(PayloadError, match="changes entry"):
        apply_patch([base[0][:5]], pack_patch([base[0][:6]], [base[0][:6] ^ np.uint16([0, 0, 0, 0, 0, 1])]), "")


def publish(objects: Objects, new: list[Bits], version: int, base: tuple[int, list[Bits]] | None) -> None:
    """A patch from `base`, or an anchor."""
    key = HeadKey(version, None if base is None else base[0])
    packed: Packed = pack_anchor(new) if base is None else pack_patch(base[1], new)
    head = Head(
        run_id=RUN, key=key, digest=digest_of(new), form=packed.form, changed=packed.changed, sizes=packed.sizes,
        tokens=version, last=False,
    )  # fmt: skip
    upload = upload_of(head, packed, A, objects.part_bytes)
    while not upload.done:
        upload.step(objects)


def history(objects: Objects, anchors: tuple[int, ...], versions: int = 6) -> dict[int, list[Bits]]:
    """Versions 1, 2 ...: a patch to each, and anchors."""
    found = {1: drawn(1)}
    for version in range(1, versions + 1):
        if version > 1:
            found[version] = moved(found[version - 1], 0.2, version)
            publish(objects, found[version], version, (version - 1, found[version - 1]))
        if version in anchors:
            publish(objects, found[version], version, None)
    return found


def at(subscriber: Subscriber, versions: dict[int, list[Bits]]) -> int | None:
    """The version that it says it is at; its bits are those."""
    if subscriber.at is None:
        return None
    expected = versions[subscriber.at.number]
    assert all(np.array_equal(a, b) for a, b in zip(subscriber.fragments, expected, strict=True))
    return subscriber.at.number


@pytest.fixture(params=["memory", "directory", "localbucket"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Objects]:
    if request.param == "localbucket":
        with bucket(tmp_path):
            yield open_objects(f"s3://{BUCKET}/run")
    elif request.param == "directory":
        yield open_objects(str(tmp_path / "run"), make=True)
    else:
        yield MemoryObjects(part_bytes=16)


def test_a_follower_gets_every_bit_and_damage_sends_it_to_an_anchor(objects: Objects) -> None:
    versions = history(objects, anchors=(1, 5))
    subscriber = Subscriber(objects, RUN, LAYOUTS)
    subscriber.poll()
    assert at(subscriber, versions) == 6 and subscriber.anchors == 1
    late = Subscriber(objects, RUN, LAYOUTS)
    damaged = [one.key for one in objects.list(f"{PATCHES}{6:012d}/") if read_key(one.key) is None]
    objects.delete(damaged)
    objects.put_new(damaged[0], b"nonsense")
    late.poll()
    assert at(late, versions) == 5 and "patch to version 6 is left out" in late.notes[0]
    for _ in range(MOST_TRIES):
        assert late.poll() is None
    assert "waits for the next anchor" in late.notes[1]
    versions[7] = moved(versions[6], 0.001, 7)
    publish(objects, versions[7], 7, (6, versions[6]))
    assert late.poll() is None and at(late, versions) == 5
    publish(objects, versions[7], 7, None)
    late.poll()
    assert at(late, versions) == 7
    subscriber.poll()
    assert at(subscriber, versions) == 7


def test_a_hole_and_the_way_of_fewest_bytes() -> None:
    objects = MemoryObjects()
    versions = history(objects, anchors=(1, 4, 6))
    away = Subscriber(objects, RUN, LAYOUTS)
    hole = f"{PATCHES}{3:012d}/"
    for one in objects.list(hole):
        objects.delete([one.key])
    away.poll()
    assert at(away, versions) == 6 and (away.anchors, away.patches) == (1, 0)
    publish(objects, versions[6], 7, (6, versions[6]))
    versions[7] = versions[6]
    assert away.poll() is not None and (away.anchors, away.patches, away.changed) == (1, 1, 0)


def test_what_is_seen_late_is_waited_for() -> None:
    """A listing that is ahead of reads, and behind: every version that it reaches is right, and it gets to the end."""
    heap = FaultyHeap(random.Random(1), Faults(unseen_get=0.5, unseen_list=0.5))
    heap.chaos = False
    objects = MemoryObjects(heap, part_bytes=40)
    subscriber, versions = Subscriber(objects, RUN, LAYOUTS), history(objects, anchors=(1,))
    heap.chaos = True
    for _ in range(400):
        heap.tick()
        subscriber.poll()
        at(subscriber, versions)
    publish(MemoryObjects(heap), versions[6], 7, None)
    versions[7] = versions[6]
    heap.chaos = False
    subscriber.poll()
    assert at(subscriber, versions) == 7


def test_another_runs_patch_and_another_keys_head_are_left_out() -> None:
    objects = MemoryObjects()
    versions = history(objects, anchors=(1,), versions=2)
    stranger = Subscriber(objects, "6" * 32, LAYOUTS)
    assert stranger.poll() is None and "another patch or run" in stranger.notes[0]
    raw = objects.get(HeadKey(2, 1).key)
    assert raw is not None
    objects.put_new(HeadKey(3, 2).key, raw)
    subscriber = Subscriber(objects, RUN, LAYOUTS)
    subscriber.poll()
    assert at(subscriber, versions) == 2 and len(subscriber.notes) == 1


def test_garbage_is_what_no_later_version_needs() -> None:
    objects = MemoryObjects()
    history(objects, anchors=(1, 3, 5))
    listed = objects.list(PATCHES)
    assert garbage(listed, 2) == []
    gone = garbage(listed, 4)
    assert {int(key.split("/")[1]) for key in gone} == {1, 2}
    objects.delete(gone)
    assert Subscriber(objects, RUN, LAYOUTS).poll() is not None


def version_of(state: ChainState, version: int, **changes: object) -> ChainState:
    torch.manual_seed(version)
    fragments = tuple(dataclasses.replace(f, weights=f.weights + torch.randn_like(f.weights)) for f in state.fragments)
    return dataclasses.replace(state, version=version, fragments=fragments, **changes)  # pyright: ignore[reportArgumentType]


def test_members_publish_in_turn_and_step_in_for_each_other() -> None:
    law, heap = rules(), Heap()
    policy = Policy(publish_every=2, anchor_every=3, patience_s=10.0)
    members = {inc: Publisher(MemoryObjects(heap), law, policy) for inc in (A, B)}
    first, bits = begun(law), {}

    def fold(version: int, *, only: str | None = None, now: float = 0.0, **changes: object) -> None:
        state = version_of(first, version, **changes)
        bits[version] = [bits_of(f.weights) for f in state.fragments]
        for inc in [only] if only else members:
            members[inc].applied(state, inc, now)
            members[inc].go(inc, now)

    for version in range(1, 13):
        fold(version)
    keys = [found for one in MemoryObjects(heap).list(PATCHES) if (found := read_key(one.key)) is not None]
    assert [k for k in keys if k.base is not None] == [HeadKey(v, v - 2) for v in range(4, 13, 2)]
    assert [k.version for k in keys if k.base is None] == [2, 6, 12], "who begins, and every third"
    assert {inc: p.published for inc, p in members.items()} == {A: 4, B: 4}, "they take turns"
    subscriber = Subscriber(MemoryObjects(heap), law.run_id, LAYOUTS)
    subscriber.poll()
    assert at(subscriber, bits) == 12
    fold(14, only=A)  # it is B's turn, and B says nothing
    assert subscriber.poll() is None
    members[A].go(A, 9.9)
    assert subscriber.poll() is None
    members[A].go(A, 10.0)
    subscriber.poll()
    assert at(subscriber, bits) == 14
    members[B] = Publisher(MemoryObjects(heap), law, policy)  # it healed, and has no bits of what is published
    fold(18, only=B)
    assert subscriber.poll() is None
    members[B].go(B, 30.0)
    subscriber.poll()
    assert at(subscriber, bits) == 18 and subscriber.anchors == 2
    fold(19, only=B, done=True)
    state = version_of(first, 19, done=True)
    assert members[B].finish(state, B, 0.0)
    found = subscriber.poll()
    assert found is not None and found.last and at(subscriber, bits) == 19
    assert all(len(p.held) <= 3 for p in members.values())


class Publishing(World):
    """A random history of members that publish."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.policy = dataclasses.replace(self.policy, publish_every=self.rng.choice([1, 3]), anchor_every=3)
        self.bits: dict[int, list[Bits]] = {}

    def record(self, before: ChainState, follower: Any, raw: bytes, applied: Any) -> None:
        super().record(before, follower, raw, applied)
        self.bits.setdefault(follower.state.version, [bits_of(f.weights) for f in follower.state.fragments])


def test_what_is_published_under_faults_is_of_the_one_history(long: bool) -> None:
    ended = []
    for seed in range(50 if long else 1):
        world = Publishing(seed)
        world.run()
        subscriber = Subscriber(MemoryObjects(world.heap), world.rules.run_id, world.rules.layouts)
        for _ in range(2 * MOST_TRIES):
            subscriber.poll()
        assert subscriber.at is not None and at(subscriber, world.bits) is not None
        ended.append(subscriber.at.last)
    assert all(ended), "the end is published, whoever dies before"
