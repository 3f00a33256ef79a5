"""Headers and decoders against everything that may come over a wire."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.fuzz_codecs import ROUND, Tally, attempt, delta_for, fuzz, resealed
from lowcomm.codec import Codec, Fp32, Int8
from lowcomm.codec.flat import flatten, unflatten
from lowcomm.codec.wire import FIELDS, HEADER_BYTES, CodecId, Part, open_body, pack, seal, shapes_hash, unpack
from lowcomm.types import Payload, PayloadError
from tests.methods import CODECS, name

DELTA = delta_for(3)
SHAPES = shapes_hash(DELTA)


def sealed(body: bytes, codec_id: CodecId = CodecId.FP32) -> Tensor:
    return pack(codec_id, DELTA, ROUND, torch.tensor(list(body), dtype=torch.uint8)).data


def field_at(offset: int, fmt: str, value: int, data: Tensor) -> Payload:
    raw = bytearray(data.numpy().tobytes())
    struct.pack_into(fmt, raw, offset, value)
    return Payload(data=torch.frombuffer(raw, dtype=torch.uint8))


def test_layout_is_the_documented_one() -> None:
    """Old payloads and other programs read these offsets."""
    raw = sealed(b"abc", CodecId.INT4).numpy().tobytes()
    assert len(raw) == HEADER_BYTES + 3 == 67
    assert raw[:4] == b"LCPD"
    found = struct.unpack_from("<HHQQIHHIIQQ", raw, 4)
    assert found == (2, 5, ROUND.run, SHAPES, ROUND.index, 2, 1, 0, 1, 3, ROUND.seed)
    assert struct.unpack_from("<Q", raw, 56) != (0,)
    assert raw[64:] == b"abc"


def test_ids_are_stable() -> None:
    assert {i.name: int(i) for i in CodecId if i < 16} == {
        "FP32": 1, "BF16": 2, "FP8": 3, "INT8": 4, "INT4": 5, "TWO_BIT": 6, "SIGN": 7,
    }  # fmt: skip
    assert len({int(i) for i in CodecId}) == len(CodecId.__members__)


@given(body=st.binary(max_size=200), shift=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_round_trip_at_any_place_in_a_buffer(body: bytes, shift: int) -> None:
    """A row of a gathered matrix starts anywhere; the body can be viewed as a larger type all the same."""
    data = sealed(body)
    moved = torch.cat([torch.zeros(shift, dtype=torch.uint8), data])[shift:]
    found = unpack(Payload(data=moved), CodecId.FP32, DELTA, ROUND, body_bytes=len(body))
    assert bytes(found.numpy()) == body
    assert found[: len(body) // 4 * 4].view(torch.float32).numel() == len(body) // 4


@pytest.mark.parametrize(
    ("offset", "fmt", "value", "says"),
    [
        (0, "<I", 0x4C435044, "is not one of ours"),
        (4, "<H", 1, "format version is 1, expected 2"),
        (6, "<H", 4, "codec id is 4, expected 1"),
        (8, "<Q", 77, "of run 000000000000004d, this is run 00000000000bee5f"),
        (16, "<Q", 77, "names and shapes is 77"),
        (24, "<I", ROUND.index - 1, "stale round 11, this is round 12"),
        (24, "<I", ROUND.index + 1, "future round 13, this is round 12"),
        (24, "<I", 2**32 - 1, "future round"),
        (28, "<H", 0, "of island 0, expected one of island 2"),
        (28, "<H", 65535, "of no island, expected one of island 2"),
        (30, "<H", 0, "of fragment 0, expected fragment 1"),
        (32, "<I", 1, r"part is \(1, 1\)"),
        (36, "<I", 0, r"part is \(0, 0\)"),
        (40, "<Q", 2**63, "body length in bytes is 9223372036854775808, expected 40"),
        (40, "<Q", 39, "body length in bytes is 39"),
        (48, "<Q", 5, "seed of the round is 5"),
        (56, "<Q", 0, "checksum"),
        (64, "<B", 1, "checksum"),
    ],
)
def test_each_field_is_checked(offset: int, fmt: str, value: int, says: str) -> None:
    payload = field_at(offset, fmt, value, sealed(bytes(40)))
    with pytest.raises(PayloadError, match=says) as caught:
        unpack(payload, CodecId.FP32, DELTA, ROUND)
    assert "\n" not in str(caught.value)


def test_a_round_is_checked_only_if_one_is_expected() -> None:
    payload = Payload(data=sealed(bytes(8)))
    unpack(payload, CodecId.FP32, DELTA)
    for offset, fmt in ((8, "<Q"), (24, "<I"), (28, "<H"), (30, "<H"), (48, "<Q")):
        with pytest.raises(PayloadError, match="checksum"):  # it covers what is not compared
            unpack(field_at(offset, fmt, 5, payload.data), CodecId.FP32, DELTA)
    unpack(payload, CodecId.FP32, DELTA, dataclasses.replace(ROUND, island=None))  # any sender
    with pytest.raises(PayloadError, match="stale"):
        unpack(payload, CodecId.FP32, DELTA, dataclasses.replace(ROUND, index=13))
    with pytest.raises(PayloadError, match="expected 9"):
        unpack(payload, CodecId.FP32, DELTA, ROUND, body_bytes=9)
    with pytest.raises(PayloadError, match="part"):
        unpack(payload, CodecId.FP32, DELTA, ROUND, part=Part(index=0, count=2))


@pytest.mark.parametrize(
    "data", [torch.zeros(80), torch.zeros(2, 80, dtype=torch.uint8), torch.zeros(160, dtype=torch.uint8)[::2]]
)
def test_what_is_no_row_of_bytes_is_refused(data: Tensor) -> None:
    with pytest.raises(PayloadError, match="contiguous 1-D uint8"):
        unpack(Payload(data=data), CodecId.FP32, DELTA)


@pytest.mark.parametrize("other", [{"w": (48, 19)}, {"w": (19, 48), "b": (130,)}, {"v": (48, 19), "b": (130,)}])
def test_hash_sees_names_shapes_and_order(other: dict[str, tuple[int, ...]]) -> None:
    like = {"w": torch.zeros(48, 19), "b": torch.zeros(130)}
    assert shapes_hash({n: torch.zeros(s) for n, s in other.items()}) != shapes_hash(like)
    assert shapes_hash(dict(reversed(like.items()))) != shapes_hash(like)
    assert shapes_hash({n: torch.ones_like(t) for n, t in like.items()}) == shapes_hash(like)


@pytest.mark.parametrize("codec", CODECS, ids=name)
@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"island": 1}, "payload is of island 2, expected one of island 1"),
        ({"run": 7}, "payload is of run 00000000000bee5f, this is run 0000000000000007"),
        ({"fragments": (0,)}, "payload is of fragment 1, expected fragment 0"),
    ],
)
def test_payload_of_another_sender_run_or_fragment(codec: Codec, other: dict[str, Any], says: str) -> None:
    """The body is one that the codec would take."""
    payload, _ = codec.encode(DELTA, codec.init(DELTA), ROUND)
    expected = dataclasses.replace(ROUND, **other)
    with pytest.raises(PayloadError, match=says):
        codec.decode(payload, DELTA, expected)
    with pytest.raises(PayloadError, match=says):
        codec.accumulate(payload, 1.0, {n: torch.zeros_like(t) for n, t in DELTA.items()}, expected)


@pytest.mark.parametrize("other", [{"island": 65535}, {"fragments": (65535,)}])
def test_a_sender_or_fragment_without_room(other: dict[str, Any]) -> None:
    with pytest.raises(PayloadError, match=r"can't name .* 65535: there is room for 0 to 65534"):
        Fp32().encode(DELTA, {}, dataclasses.replace(ROUND, **other))


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_truncated_at_any_byte(codec: Codec) -> None:
    payload, _ = codec.encode(DELTA, codec.init(DELTA), ROUND)
    step = max(1, payload.nbytes // 150)
    for size in {*range(0, payload.nbytes, step), payload.nbytes - 1}:
        with pytest.raises(PayloadError):
            codec.decode(Payload(data=payload.data[:size]), DELTA, ROUND)
    longer = torch.cat([payload.data, torch.zeros(1, dtype=torch.uint8)])
    with pytest.raises(PayloadError):
        codec.decode(Payload(data=longer), DELTA, ROUND)


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_every_flipped_bit_is_seen(codec: Codec) -> None:
    payload, _ = codec.encode(DELTA, codec.init(DELTA), ROUND)
    places = {*range(8 * HEADER_BYTES), *range(8 * HEADER_BYTES, 8 * payload.nbytes, 2 * payload.nbytes // 50 + 1)}
    for bit in places:
        data = payload.data.clone()
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            codec.decode(Payload(data=data), DELTA, ROUND)


@pytest.mark.parametrize("codec", CODECS, ids=name)
def test_bodies_of_any_length_behind_a_good_header(codec: Codec) -> None:
    """The checksum is right; only the codec itself can see what is wrong."""
    source, _ = codec.encode(DELTA, codec.init(DELTA), ROUND)
    codec_id = CodecId(FIELDS.unpack_from(source.data.numpy().tobytes())[2])
    tally = Tally(codec=name(codec))
    body = source.data[HEADER_BYTES:]
    for size in (0, 1, body.numel() // 2, body.numel() - 1, body.numel() + 1, 3 * body.numel()):
        data = torch.cat([torch.zeros(HEADER_BYTES, dtype=torch.uint8), body.repeat(3)[:size]])
        attempt(codec, bytearray(seal(data, codec_id, SHAPES, ROUND).data.numpy().tobytes()), DELTA, tally)
    assert not tally.failures
    assert not codec.fixed_size or tally.accepted == 0


def test_five_thousand_mutants() -> None:
    """The short form of benchmarks/fuzz_codecs.py, which runs a million."""
    tallies = fuzz(CODECS, 5000, seed=0)
    assert not [t.failures[:3] for t in tallies if t.failures]
    assert all(t.refused for t in tallies)
    assert sum(t.accepted for t in tallies) > 100  # or the mutants never get past the checksum


@given(body=st.binary(max_size=1400), pick=st.integers(0, len(CODECS) - 1))
@settings(deadline=None, max_examples=150)
def test_arbitrary_bodies(body: bytes, pick: int) -> None:
    codec = CODECS[pick]
    source, _ = codec.encode(DELTA, codec.init(DELTA), ROUND)
    codec_id = CodecId(FIELDS.unpack_from(source.data.numpy().tobytes())[2])
    tally = Tally(codec=name(codec))
    attempt(codec, resealed(bytearray(bytes(HEADER_BYTES) + body), codec_id, DELTA), DELTA, tally)
    size = source.nbytes - HEADER_BYTES
    filled = (body or b"\x00") * (size // max(1, len(body)) + 1)
    attempt(codec, resealed(bytearray(bytes(HEADER_BYTES) + filled[:size]), codec_id, DELTA), DELTA, tally)
    assert not tally.failures
    assert tally.refused + tally.accepted == 2


def test_the_fuzzer_sees_a_decoder_that_is_wrong() -> None:
    class Careless(Int8):
        def examine(self, body: Tensor, numel: int) -> None:
            return None

    assert any(t.failures for t in fuzz([Careless()], 2000, seed=1))


def test_nothing_is_allocated_for_a_payload_that_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that promises 2^63 bytes, or a payload of another size than the shapes need, is refused unread."""
    small = Payload(data=sealed(bytes(40), CodecId.INT8))
    liar = field_at(40, "<Q", 2**63, sealed(bytes(40), CodecId.INT8))
    monkeypatch.setattr(torch, "empty", None)
    for bad in (small, liar):
        with pytest.raises(PayloadError, match="length"):
            Int8().decode(bad, DELTA, ROUND)


def test_flatten_is_a_view_where_it_can_be() -> None:
    flat = torch.arange(20.0)
    views = {"a": flat[2:8].view(2, 3), "b": flat[8], "c": flat[9:9], "d": flat[9:20]}
    joined = flatten(views)
    assert joined.data_ptr() == views["a"].data_ptr()
    assert torch.equal(joined, flat[2:])
    assert all(torch.equal(v, views[n]) for n, v in unflatten(joined, views).items())
    for apart in (
        {"b": views["d"], "a": views["a"]},
        {"a": views["a"].t(), "d": views["d"]},
        {"a": flat[:2], "d": flat[3:]},
    ):
        joined = flatten(apart)
        assert torch.equal(joined, torch.cat([t.reshape(-1) for t in apart.values()]))
        joined.zero_()
    assert torch.equal(flat, torch.arange(20.0))
    assert flatten({}).numel() == 0
    with pytest.raises(PayloadError, match=r"tensor h .*float16"):
        flatten({"h": torch.zeros(2, dtype=torch.float16)})


def test_shapes_of_one_size_are_not_mixed_up() -> None:
    payload, _ = Fp32().encode({"a": torch.zeros(2, 3)}, {}, ROUND)
    with pytest.raises(PayloadError, match="names and shapes"):
        open_body(payload, CodecId.FP32, shapes_hash({"a": torch.zeros(3, 2)}), ROUND)
