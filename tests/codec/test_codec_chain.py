"""Chains: what may follow what, lossless stages, bombs, and when packing pays."""

from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm import LocalSGD
from lowcomm.codec import (
    BF16,
    Ans,
    Codec,
    DctTopK,
    ErrorFeedback,
    FedZip,
    Fp32,
    Int4,
    Int8,
    Lion,
    Packed,
    PartialSharing,
    PowerSGD,
    RandomK,
    Recoded,
    Sign,
    Threshold,
    TopK,
    Zstd,
    wire,
)  # fmt: skip
from lowcomm.codec.flat import flatten
from lowcomm.codec.packed import most_bytes
from lowcomm.codec.stage import Stage, expected_share
from lowcomm.config import SyncConfig
from lowcomm.outer import SGD
from lowcomm.presets import SparseLoCo
from lowcomm.types import ConfigError, Delta, Payload, PayloadError, Round
from tests.methods import name
from tests.support import runs, toy

ROUND = Round(index=2, step=8, fragments=(0,), seed=99, island=1)
STAGES: tuple[Stage, ...] = (Zstd(), Zstd(level=5), Ans())
FIRSTS: tuple[Codec, ...] = (
    Fp32(), Int8(), Sign(), TopK(chunk=256, k=16), Threshold(rms=1.0), PowerSGD(rank=2), FedZip(chunk=256, k=16),
    TopK(chunk=256, k=16) | Int8(), ErrorFeedback(codec=Int4()),
)  # fmt: skip


def deltas(seed: int = 0) -> Delta:
    g = torch.Generator().manual_seed(seed)
    shapes = {"a": (71, 67), "one": (), "none": (3, 0), "c": (4, 5, 6)}
    return {n: torch.randn(s, generator=g) for n, s in shapes.items()}


@pytest.mark.parametrize("stage", STAGES, ids=name)
@pytest.mark.parametrize("first", FIRSTS, ids=name)
def test_a_stage_loses_nothing(first: Codec, stage: Stage) -> None:
    chain, delta = first | stage, deltas()  # pyright: ignore[reportOperatorIssue]
    chain.check()
    payload, after = chain.encode(delta, chain.init(delta), ROUND)
    plain, wanted_state = first.encode(delta, first.init(delta), ROUND)
    assert payload.nbytes <= plain.nbytes + 72
    got, wanted = chain.decode(payload, delta, ROUND), first.decode(plain, delta, ROUND)
    assert all(torch.equal(got[n], wanted[n]) for n in delta)
    assert after.keys() == wanted_state.keys()
    assert all(torch.equal(after[k], wanted_state[k]) for k in after)


@given(data=st.binary(max_size=300), repeat=st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_stages_round_trip_any_bytes(data: bytes, repeat: int) -> None:
    for stage in STAGES:
        raw = data * repeat
        assert stage.unpack(stage.pack(raw), len(raw)) == raw


@given(data=st.binary(max_size=60), size=st.integers(0, 200))
@settings(deadline=None, max_examples=100)
def test_stages_unpack_to_the_size_asked_for_or_refuse(data: bytes, size: int) -> None:
    for stage in STAGES:
        for packed in (data, stage.pack(data)):
            try:
                assert len(stage.unpack(packed, size)) == size
            except PayloadError:
                assert packed is data or size != len(data)


@pytest.mark.parametrize("values", [Int8(block=64), Int4(), BF16(), Sign()], ids=name)
@pytest.mark.parametrize(
    "first",
    [TopK(chunk=256, k=16), RandomK(chunk=64, k=8), PartialSharing(k=512), Threshold(rms=1.0), DctTopK()],
    ids=name,
)
def test_values_in_another_coding(first: Any, values: Any) -> None:
    """The same entries, coded as the dense codec codes them."""
    chain, delta = first | values, deltas()
    assert chain == Recoded(first=first, values=values)
    chain.check()
    payload, _ = chain.encode(delta, chain.init(delta), ROUND)
    got = flatten(chain.decode(payload, delta, ROUND))
    pieces = first.split(flatten(delta), delta, first.init(delta), ROUND)
    alone = {"values": pieces.values}
    wanted = values.decode(values.encode(alone, {}, ROUND)[0], alone)["values"]
    places = first.places(pieces.side, delta, ROUND.seed)
    assert torch.equal(got, first.spread(places, wanted, delta))
    assert payload.nbytes == 64 + pieces.side.numel() + values.body_bytes(pieces.values.numel())
    assert chain.fixed_size is first.fixed_size


def test_values_that_no_encoder_makes_are_refused() -> None:
    chain, delta = TopK(chunk=256, k=16) | Int8(), deltas()
    body = chain.encode(delta, {}, ROUND)[0].data[wire.HEADER_BYTES :].clone()
    side = TopK(chunk=256, k=16).side_bytes(body, delta)
    body[side : side + 2] = torch.tensor([0xC0, 0x7F], dtype=torch.uint8)
    with pytest.raises(PayloadError, match="scale"):
        chain.decode(wire.pack(wire.CodecId.CHAIN, delta, ROUND, body), delta)


def test_how_chains_are_written() -> None:
    chain = TopK() | Int8() | Zstd()
    assert chain == Packed(first=Recoded(first=TopK(), values=Int8()), stage=Zstd())
    assert Int8() | Ans() == Packed(first=Int8(), stage=Ans())  # pyright: ignore[reportOperatorIssue]
    assert not chain.fixed_size and not chain.linear
    assert ErrorFeedback(codec=chain).fixed_size is False


@pytest.mark.parametrize(
    ("first", "second"),
    [(TopK(), TopK()), (TopK() | Int8(), Int8()), (Int8() | Zstd(), Ans()), (TopK(), 3), (TopK() | Zstd(), Zstd())],  # pyright: ignore
)
def test_parts_that_do_not_fit_are_refused(first: Any, second: Any) -> None:
    with pytest.raises(ConfigError, match=r"is not allowed: .* Fix: TopK\(\) \| Int8\(\) \| Zstd\(\)"):
        first | second


@pytest.mark.parametrize(
    ("codec", "says"),
    [
        (Recoded(first=Int8(), values=Int8()), "codec.first = Int8"),  # pyright: ignore[reportArgumentType]
        (Recoded(first=TopK(), values=TopK()), "codec.values = TopK"),  # pyright: ignore[reportArgumentType]
        (Recoded(first=TopK(k=0), values=Int8()), "codec.k = 0"), (Packed(first=TopK(k=0), stage=Ans()), "codec.k = 0"),
        (Packed(first=TopK() | Zstd(), stage=Ans()), "codec.first = Packed"),
        (Packed(first=Int8(), stage=Zstd(level=23)), "codec.stage.level = 23"),
        (Packed(first=Int8(), stage=Ans(link_bytes_per_s=0.0)), "codec.stage.link_bytes_per_s = 0.0"),
        (Packed(first=Int8(), stage=Zstd(link_bytes_per_s="fast")), "codec.stage.link_bytes_per_s = 'fast'"),
    ],
)  # fmt: skip
def test_settings_out_of_range(codec: Codec, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        codec.check()


@pytest.mark.parametrize("stage", STAGES, ids=name)
def test_packing_only_where_the_link_makes_it_pay(stage: Stage) -> None:
    """int4 of Gaussian values shrinks by a sixth: that pays below a sixth of the packing speed."""
    delta = {"w": torch.randn(200_000, generator=torch.Generator().manual_seed(0))}
    plain, _ = Int4().encode(delta, {}, ROUND)
    sizes, wanted = [], Int4().decode(plain, delta)["w"]
    for speed in (None, 0.1 * stage.pack_bytes_per_s, 0.3 * stage.pack_bytes_per_s):
        codec = Packed(first=Int4(), stage=dataclasses.replace(stage, link_bytes_per_s=speed))
        payload, _ = codec.encode(delta, {}, ROUND)
        sizes.append(payload.nbytes)
        assert torch.equal(codec.decode(payload, delta)["w"], wanted)
    assert sizes[0] == sizes[1] < 0.85 * plain.nbytes
    assert sizes[2] == plain.nbytes + 72
    codec = Packed(first=Int4(), stage=dataclasses.replace(stage, link_bytes_per_s="measured"))
    for speed, size in ((None, sizes[0]), (0.1, sizes[0]), (0.3, sizes[2])):
        measured = None if speed is None else speed * stage.pack_bytes_per_s
        payload, _ = codec.encode(delta, {}, dataclasses.replace(ROUND, link_bytes_per_s=measured))
        assert payload.nbytes == size


def test_the_saving_is_foretold_from_the_bytes() -> None:
    assert expected_share(bytes(range(256)) * 300) == pytest.approx(1.0)
    assert expected_share(bytes(1000)) == 0
    assert expected_share(b"") == 1
    assert expected_share(b"ab" * 50_001) == pytest.approx(1 / 8, abs=1e-3)
    random = torch.randint(0, 256, (500_000,), dtype=torch.uint8).numpy().tobytes()
    assert expected_share(random) > 0.99
    assert not Zstd(link_bytes_per_s=1e7).pays(random)


def forged(delta: Delta, size: int, rest: bytes, stage: Stage) -> Payload:
    """A packed payload that claims `size` bytes."""
    head = Int8().encode(delta, {}, ROUND)[0].data[: wire.HEADER_BYTES]
    number = torch.tensor([size - 2**63], dtype=torch.int64).view(torch.uint8)
    body = torch.cat([number, head, torch.tensor(list(rest), dtype=torch.uint8)])
    return wire.pack(stage.codec_id, delta, ROUND, body)


@pytest.mark.parametrize("size", [2**62, 2**40, 10**7])
def test_a_bomb_is_refused_before_it_is_unpacked(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = deltas()
    for stage in STAGES:
        monkeypatch.setattr(type(stage), "unpack", None)
        with pytest.raises(PayloadError, match=r"at most \d+ are possible"):
            Packed(first=Int8(), stage=stage).decode(forged(delta, size, b"", stage), delta)


def test_a_frame_that_grows_beyond_its_claim_is_refused() -> None:
    delta, zeros = deltas(), bytes(50_000_000)
    claims_less = forged(delta, 6000, zstandard.ZstdCompressor().compress(zeros), Zstd())
    with pytest.raises(PayloadError, match="does not unpack to the 6000 bytes"):
        Packed(first=Int8(), stage=Zstd()).decode(claims_less, delta)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    with pytest.raises(PayloadError, match="does not unpack"):
        Packed(first=Int8(), stage=Zstd()).decode(forged(delta, 6000, silent, Zstd()), delta)


def test_no_codec_is_longer_than_the_limit() -> None:
    for delta in (deltas(), {"one": torch.tensor(1.0)}, {f"v{i}": torch.ones(64, 64) for i in range(9)}):
        for codec in (*FIRSTS, TopK(chunk=64, k=64, bits=16), Threshold(rms=0, bits=16), DctTopK(k=4096, bits=16)):
            assert codec.encode(delta, codec.init(delta), ROUND)[0].nbytes <= most_bytes(delta)


def test_what_unpacks_is_checked_again() -> None:
    delta, codec = deltas(), Int8() | Zstd()  # pyright: ignore[reportOperatorIssue]
    raw = bytearray(Int8().encode(delta, {}, ROUND)[0].data[wire.HEADER_BYTES :].numpy().tobytes())
    raw[9] ^= 1
    with pytest.raises(PayloadError, match="checksum"):
        codec.decode(forged(delta, len(raw), Zstd().pack(bytes(raw)), Zstd()), delta)


@pytest.mark.parametrize(("library", "stage"), [("zstandard", Zstd()), ("constriction", Ans())])
def test_a_missing_library_is_named(library: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(module: str, *rest: Any) -> Any:
        if module == library:
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"{library} is missing. Fix: pip install 'lowcomm\[codecs\]'"):
        Packed(first=Int8(), stage=stage).check()


def test_sparseloco_says_what_the_paper_says() -> None:
    model = toy.Net()
    sync = SparseLoCo(model, toy.adamw(model))
    assert isinstance(sync, LocalSGD)
    assert (sync.spec.every, sync.spec.outer) == (30, SGD(lr=1.0))
    assert sync.spec.codec == ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95)


@pytest.mark.parametrize(
    "codec",
    [
        ErrorFeedback(codec=TopK(chunk=64, k=8) | Int8() | Zstd()), ErrorFeedback(codec=PowerSGD(rank=2)),
        ErrorFeedback(codec=RandomK(chunk=64, k=16)), ErrorFeedback(codec=PartialSharing(chunk=64, k=16)),
        ErrorFeedback(codec=DctTopK(k=512)), ErrorFeedback(codec=FedZip(chunk=64, k=8)),
        ErrorFeedback(codec=Threshold(rms=1.0)),
    ],
    ids=name,
)  # fmt: skip
def test_training_goes_down(codec: Codec) -> None:
    sync = toy.build(3, codec=codec, outer=SGD(lr=1.0))
    losses = [sum(toy.train_step(sync, step)) for step in range(160)]
    assert sum(losses[-20:]) < 0.75 * sum(losses[:20])


@pytest.mark.parametrize(
    ("codec", "key"),
    [
        (ErrorFeedback(codec=PowerSGD(rank=2, energy=0.9)), "codec.0.codec.schedule"),
        (ErrorFeedback(codec=PartialSharing(chunk=64, k=16)) | Zstd(), "codec.0.codec.turn"),  # pyright: ignore[reportOperatorIssue]
        (ErrorFeedback(codec=Lion(), dtype="bf16"), "codec.0.error"),
    ],
    ids=["powersgd", "partial sharing", "lion"],
)
def test_resume_is_exact(tmp_path: Path, codec: Codec, key: str) -> None:
    """Stopped inside a round: states, also those that grow, and weights go on bit for bit."""
    from lowcomm.trainer import train as run

    corpus = runs.write_corpus(tmp_path)
    config = runs.small(corpus, tmp_path / "whole", sync=SyncConfig(every=3, codec=codec, outer=SGD(lr=0.5)))
    assert run(config) == 0
    parts = dataclasses.replace(config, run_dir=tmp_path / "parts")
    stopped = dataclasses.replace(parts, checkpoint=dataclasses.replace(parts.checkpoint, stop_at_step=7))
    assert run(stopped) == 3
    assert run(dataclasses.replace(parts, resume=True)) == 0
    expected = runs.outcome(tmp_path / "whole")
    assert any(key in k for k in expected)
    runs.assert_same(runs.outcome(tmp_path / "parts"), expected)
