"""What lies in a store as bytes: canonical texts, commits, requests, contributions; anything else is refused."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from lowcomm.store import contribution, keys, text
from lowcomm.store.commit import Admitted, Announced, Commit, Removed, Used
from lowcomm.store.contribution import Header
from lowcomm.store.parts import part_key
from lowcomm.store.run_file import JoinRequest, RunFile
from lowcomm.store.snapshot import Manifest
from lowcomm.types import PayloadError

INC, SHA = "a" * 32, "b" * 64
SHOT = Announced(version=3, key=f"snapshots/{3:012d}-{INC}/manifest.json", sha256=SHA)
COMMIT = Commit(
    v=7, by=INC, nonce="c" * 32, prev=SHA, state=SHA, used=(Used(key=keys.delta(6, INC, 2), sha256=SHA, weight=0.25),),
    scale=0.5, admit=(Admitted(inc=INC, name="site-1", base=6),), remove=(Removed(inc=INC, reason="silent"),),
    snapshot=SHOT, pace={"steps": 10}, stop=True, waited_s=1.5, wall="2026-01-01",
)  # fmt: skip
JOIN = JoinRequest(run_id=INC, name="x", inc=INC, base=3, nonce=INC, about={"torch": "2"}, expected_s=3.0)
RUN = RunFile(
    run_id=INC, configuration={"seed": 1}, fragments=((("w", (2, 3), "float32"), ("b", (), "bfloat16")),),
    codec="Fp32", snapshot=SHOT, data={"kind": "own"}, tokenizer_sha256=SHA, target_tokens=5,
)  # fmt: skip
MANIFEST = Manifest(run_id=INC, version=3, state=SHA, files=(("state.json", 3, SHA),))
HEADER = Header(
    run_id=INC, inc=INC, seq=2, base=6, fragment=0, anchor=SHA, codec="Fp32", tokens=10, steps=5, norm=1.0,
    blocks=(3, 5), expected_s=2.0,
)  # fmt: skip
TEXTS: list[tuple[Any, Callable[[bytes], Any]]] = [
    (COMMIT, Commit.read), (JOIN, JoinRequest.read), (RUN, RunFile.read), (MANIFEST, Manifest.read),
]  # fmt: skip


@pytest.mark.parametrize(("value", "read"), TEXTS)
def test_records_come_back(value: Any, read: Callable[[bytes], Any]) -> None:
    assert read(value.write()) == value


@pytest.mark.parametrize(("value", "read"), TEXTS)
def test_other_texts_are_refused(value: Any, read: Callable[[bytes], Any]) -> None:
    """Every field replaced by values of other types and ranges, every field left out, one more: our error or equal."""
    fields = json.loads(value.write())
    others = (None, -1, 2**70, 10**400, 1.5, True, "x" * 2000, "../x", [], [1], [[1, 2, 3]], {}, {"a": {"b": 1}})
    for name in fields:
        for other in others:
            raw = text.write({**fields, name: other})
            try:
                found = read(raw)
            except PayloadError as error:
                assert "\n" not in str(error)
            else:
                assert read(found.write()) == found
        with pytest.raises(PayloadError):
            read(text.write({k: v for k, v in fields.items() if k != name}))
    with pytest.raises(PayloadError):
        read(text.write({**fields, "more": 1}))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[1, 2]", b'{"b":1,"a":2}', b"NaN", b"[1e999]", b"\xff", b'{"a":1,"a":1}']
)
def test_only_canonical_texts_are_read(data: bytes) -> None:
    with pytest.raises(PayloadError):
        text.read(data)


def test_texts_have_limits() -> None:
    deep: Any = 1
    for _ in range(text.MOST_DEPTH):
        deep = [deep]
    assert text.read(text.write(deep)) == deep
    for raw in (b"[" * 9 + b"1" + b"]" * 9, b"[" * 100_000, b'"' + b"x" * text.MOST_BYTES + b'"'):
        with pytest.raises(PayloadError):
            text.read(raw)
    for value in (float("nan"), float("inf"), {1, 2}, b"x"):
        with pytest.raises(PayloadError):
            text.write(value)


def apart(objects: list[tuple[str, bytes]]) -> bytes | None:
    return b"".join(data for _, data in objects[:-1]) if len(objects) > 1 else None


@pytest.mark.parametrize("part_bytes", [1 << 20, 50])
def test_contributions_come_back(part_bytes: int) -> None:
    sections = {"delta": bytes(range(120)), "ranks": b"8"}
    header, objects = contribution.pack(HEADER, sections, part_bytes)
    assert [key for key, _ in objects][-1] == HEADER.key
    assert len(objects) == (1 if part_bytes > 121 else 4)
    found = contribution.unpack(HEADER.key, objects[-1][1], apart(objects))
    assert (found.header, dict(found.sections)) == (header, sections)
    assert found.nbytes == sum(len(data) for _, data in objects)
    assert Header.read(objects[-1][1])[0] == header


@pytest.mark.parametrize("part_bytes", [1 << 20, 50])
def test_a_damaged_contribution_is_refused(part_bytes: int) -> None:
    """Truncated at every byte, one bit flipped anywhere, a part or key of another: our error, or all as it was."""
    _, objects = contribution.pack(HEADER, {"delta": bytes(range(120))}, part_bytes)
    data, body, rng = objects[-1][1], apart(objects), random.Random(0)
    for at in range(len(data)):
        with pytest.raises(PayloadError):
            contribution.unpack(HEADER.key, data[:at], body)
    for _ in range(200):
        at = rng.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        try:
            found = contribution.unpack(HEADER.key, flipped, body)
        except PayloadError:
            continue
        assert found.sha256 != text.sha256(data)  # another text of the same form: the commit's digest tells them apart
    with pytest.raises(PayloadError):
        contribution.unpack(keys.delta(6, "d" * 32, 2), data, body)
    with pytest.raises(PayloadError):
        contribution.unpack(HEADER.key, data, b"x" if body is None else None)
    if body is not None:
        with pytest.raises(PayloadError):
            contribution.unpack(HEADER.key, data, body[:-1] + b"x")


def test_a_header_of_two_gigabytes_is_not_read() -> None:
    with pytest.raises(PayloadError):
        Header.read(b"LCSC" + (2**31).to_bytes(4, "little") + b"{}")


def test_blocks_ascend() -> None:
    twice = dataclasses.replace(HEADER, blocks=(3, 3))
    _, objects = contribution.pack(twice, {"delta": b"x"}, 100)
    with pytest.raises(PayloadError, match="ascend"):
        Header.read(objects[-1][1])


def test_keys_say_what_they_are_of() -> None:
    assert keys.read_delta(keys.delta(4, INC, 9)) == (4, INC, 9)
    assert keys.read_delta(part_key(keys.delta(4, INC, 9), 0, 1)) is None
    assert keys.base_of(part_key(keys.delta(4, INC, 9), 0, 1)) == keys.base_of(keys.join(4, INC)) == 4
    assert keys.read_join(keys.join(4, INC)) == (4, INC)
    assert keys.version_of_commit(keys.commit(12)) == 12
    assert keys.version_of_snapshot(keys.snapshot(5, INC) + "state.json") == 5
    assert keys.is_manifest(keys.snapshot(5, INC) + "manifest.json")
    assert not keys.is_manifest(keys.snapshot(5, INC) + "state.json")
    for key in ("run.json", "commits/1", f"deltas/{4:012d}/../x", "control/stop"):
        assert keys.read_delta(key) is None
        assert keys.base_of(key) is None or key.startswith("deltas")
