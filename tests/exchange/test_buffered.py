"""FedBuff over an ordered log: reductions, formulas, replays, islands of unequal speed, resume, processes that die."""

from __future__ import annotations

import dataclasses
import json
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lowcomm.aggregate import Mean
from lowcomm.arrival.base import damping
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, LocalResidual, Rqm, Sign, TopK
from lowcomm.config import CheckpointConfig
from lowcomm.config_check import check
from lowcomm.data import DataConfig, TextFiles
from lowcomm.exchange.base import ExchangeChoice
from lowcomm.exchange.buffered import Buffered
from lowcomm.exchange.entry import Entry, Kind
from lowcomm.exchange.fold import Fold
from lowcomm.exchange.log import DirectoryLog, MemoryLog
from lowcomm.local import FedProx
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD, Nesterov, Outer
from lowcomm.recipe import load
from lowcomm.schedule import EveryStep, Growing
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_islands
from lowcomm.trainer import train as run
from lowcomm.types import ConfigError, SyncError
from tests.methods import EXCHANGES, name, whole_codecs
from tests.support import buffered_worker, toy
from tests.support.runs import write_corpus

UNEQUAL = (1.0, 0.5, 0.3)
FED_BACK = [ErrorFeedback(codec=Int4()), ErrorFeedback(codec=TopK(chunk=64, k=8), beta=0.95)]


@pytest.fixture(autouse=True)
def whole_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs in memory forget nothing, so that they can be folded again."""
    monkeypatch.setattr(MemoryLog, "drop", lambda _self, _before: None)


def build(
    islands: int,
    exchange: ExchangeChoice | None,
    codec: Codec | None = None,
    outer: Outer | None = None,
    clients: Clients | None = None,
) -> LocalSGD:
    models = [toy.Net() for _ in range(islands)]
    return LocalSGD(
        models, [toy.adamw(m) for m in models], every=toy.EVERY, outer=outer or Nesterov(lr=0.7, momentum=0.6),
        codec=codec or Fp32(), exchange=exchange, aggregator=Mean(by="uniform"), clients=clients,
    )  # fmt: skip


def digests(sync: LocalSGD) -> list[str]:
    return [anchor.digest().hex() for anchor in sync.state.anchors[0]]


def folded_again(like: LocalSGD, entries: Sequence[bytes], run: int) -> Fold:
    """The log folded from the start, by itself."""
    fresh = build(like.transport.islands, like.spec.exchange, like.spec.codec, like.spec.outer)
    fold = buffered_worker.follower(fresh).folds[0]
    for data in entries:
        fold.take(data, run)
    return fold


@pytest.mark.parametrize("islands", [2, 3, 4])
def test_z_islands_of_equal_speed_are_fedavg_with_uniform_weights_bit_for_bit(islands: int) -> None:
    lockstep, buffered = build(islands, None), build(islands, Buffered(size=islands))  # staleness is 0 throughout
    buffered_worker.train(lockstep, range(14))
    buffered_worker.train(buffered, range(14))
    assert torch.equal(toy.flat(list(lockstep.weights().values())), toy.flat(list(buffered.weights().values())))
    assert all(
        torch.equal(toy.flat(list(r.model.parameters())), toy.flat(list(buffered.weights().values())))
        for r in buffered.replicas
    )


@pytest.mark.parametrize("codec", [TopK(chunk=64, k=8), ErrorFeedback(codec=Int4())], ids=name)
def test_the_same_with_a_codec_to_rounding(codec: Codec) -> None:
    """Lockstep multiplies each contribution by 1/K before the sum; seeds and ways of dense codecs differ."""
    lockstep, buffered = build(2, None, codec), build(2, Buffered(size=2), codec)
    buffered_worker.train(lockstep, range(12))
    buffered_worker.train(buffered, range(12))
    a, b = (toy.flat(list(s.weights().values())) for s in (lockstep, buffered))
    if isinstance(codec, TopK):
        assert torch.equal(a, b)
    else:
        start = toy.flat(list(toy.Net().parameters()))
        assert float((a - b).norm()) < 0.1 * float((a - start).norm())


def test_damping_follows_its_formula() -> None:
    assert [damping("polynomial", tau) for tau in range(4)] == [1 / math.sqrt(1 + tau) for tau in range(4)]
    assert damping("constant", 7) == 1.0


@pytest.mark.parametrize("staleness", ["polynomial", "constant"])
def test_a_version_is_the_papers_sum(staleness: Any) -> None:
    """With SGD(lr=1): w - (1/Z) sum d(tau) Delta, from contributions with staleness 0, 1 and so on."""
    sync = build(2, Buffered(size=2, staleness=staleness), outer=SGD(lr=1.0))
    fold, codec = buffered_worker.follower(sync).folds[0], Fp32()
    w = toy.flat(list(sync.weights().values())).double()
    generator = torch.Generator().manual_seed(3)
    for version, bases in enumerate([(0, 0), (0, 1), (2, 0)]):
        for island, base in enumerate(bases):
            delta = {n: torch.randn(v.shape, generator=generator) for n, v in fold.anchor.named.items()}
            now = fold.rules.round_of(7, island, version)
            body = codec.encode(delta, codec.init(delta), now)[0].data.numpy().tobytes()
            entry = Entry(
                kind=Kind.CONTRIBUTION, island=island, run=7, sequence=version, base_version=base, norm=1.0, body=body
            )
            event = fold.take(entry.pack(), 7)
            tau = version - base
            assert (event.staleness, event.why) == (tau, None)
            w -= (
                (1.0 if staleness == "constant" else 1 / math.sqrt(1 + tau))
                / 2
                * toy.flat(list(delta.values())).double()
            )
        assert fold.anchor.version == version + 1
        torch.testing.assert_close(toy.flat(list(fold.anchor.named.values())).double(), w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("exchange", "codec"),
    [
        (exchange, codec)
        for exchange in EXCHANGES
        if isinstance(exchange, Buffered)
        for codec in ([Fp32(), *FED_BACK] if exchange.rule is None else FED_BACK[:1])
    ],
    ids=name,
)
def test_islands_of_unequal_speed_hold_the_same_bits_and_the_log_folds_to_them(
    exchange: Buffered, codec: Codec
) -> None:
    sync = build(3, exchange, codec)
    buffered_worker.train(sync, range(30))
    assert len(set(digests(sync))) == 1
    log = buffered_worker.follower(sync).log
    again = folded_again(sync, list(log.read(0)), sync.state.run_id)
    assert again.anchor.digest().hex() == digests(sync)[0]
    again = build(3, exchange, codec)
    buffered_worker.train(again, range(30))
    assert digests(again) == digests(sync), "the virtual clock gives one order"


@pytest.mark.parametrize(
    "codec", [c for c in whole_codecs() if not isinstance(c.bare, Rqm) and not c.holds_back], ids=name
)
def test_every_codec_goes_through_the_log(codec: Codec) -> None:
    if getattr(codec.bare, "only_sums", False):
        with pytest.raises(ConfigError, match="vote"):
            build(2, Buffered(size=2), codec)
        return
    sync = build(2, Buffered(size=2, speeds=(1.0, 0.5)), codec)
    notes = buffered_worker.train(sync, range(9))
    assert len(set(digests(sync))) == 1
    assert not [line for line in notes if "left out" in line]


def test_a_slow_island_blocks_nobody() -> None:
    """Its contributions come late and stale; versions go on without it."""
    sync = build(3, Buffered(size=2, speeds=(1.0, 1.0, 0.1)))
    notes = buffered_worker.train(sync, range(40), finish=False)
    versions = [anchor.version for anchor in sync.state.anchors[0]]
    assert versions[0] == versions[1] == 10 and versions[2] == 10
    slow = [line for line in notes if "island 2, contribution" in line]
    assert slow == ["round 9: log 20: island 2, contribution 0, base version 0, staleness 10"]


def test_the_order_of_events_is_in_the_notes() -> None:
    sync = build(2, Buffered(size=2, speeds=(1.0, 0.5)))
    notes = buffered_worker.train(sync, range(8))
    assert [line.partition(": ")[2] for line in notes] == [
        "log 0: island 0, contribution 0, base version 0, staleness 0",
        "log 1: island 0, contribution 1, base version 0, staleness 0",
        "log 2: island 1, contribution 0, base version 0, staleness 1",
        "log 3: island 0, done",
        "log 4: island 1, done",
    ]


def test_what_cannot_be_used_is_left_out_and_named() -> None:
    sync = build(2, Buffered(size=2, max_staleness=1))
    buffered_worker.train(sync, range(8), finish=False)
    mine, run = buffered_worker.follower(sync), sync.state.run_id
    fold, entries = mine.folds[0], list(mine.log.read(0))
    before, count = fold.anchor.digest(), fold.count
    good = Entry.unpack(entries[-1])
    fresh = {"kind": Kind.CONTRIBUTION, "island": 1, "sequence": 9, "run": run, "norm": 1.0, "body": good.body}

    def why(data: bytes, of: int = run) -> str:
        event = fold.take(data, of)
        assert event.weight == 0
        return str(event.why)

    assert "replayed" in why(entries[0])
    assert "replayed" in why(entries[-1])
    assert "it is of run" in why(Entry(**{**fresh, "run": run ^ 1}).pack())
    assert "checksum" in why(entries[-1][:-1] + bytes([entries[-1][-1] ^ 1]))
    assert "header alone" in why(b"")
    assert "too stale" in why(Entry(**fresh, base_version=0).pack())
    assert "future version" in why(Entry(**{**fresh, "sequence": 10}, base_version=99).pack())
    assert "not finite" in why(Entry(**{**fresh, "sequence": 11, "norm": math.nan}, base_version=2).pack())
    assert "stale round" in why(Entry(**{**fresh, "sequence": 12}, base_version=2).pack())
    assert "there are 2 islands" in why(Entry(**{**fresh, "island": 5}, base_version=2).pack())
    nans = {n: torch.zeros(v.shape) for n, v in fold.anchor.named.items()}
    now = fold.rules.round_of(run, 1, 13)
    body = bytearray(Fp32().encode(nans, {}, now)[0].data.numpy().tobytes())
    assert "payload" in why(Entry(**{**fresh, "sequence": 13, "body": bytes(body[:-4])}, base_version=2).pack())
    assert (fold.anchor.digest(), fold.count) == (before, count)


def test_an_island_that_diverged_is_left_out_and_goes_on_from_the_newest_version() -> None:
    sync = build(2, Buffered(size=2))
    buffered_worker.train(sync, range(3), finish=False)
    with torch.no_grad():
        sync.replicas[1].model.scale.fill_(math.inf)  # type: ignore[union-attr]
    dropped: list[dict[int, str]] = []
    sync.listeners.append(lambda report: dropped.append(report.dropped))
    buffered_worker.train(sync, [3], finish=False)
    assert list(dropped[0]) == [1]
    assert all(bool(p.isfinite().all()) for p in sync.replicas[1].model.parameters())
    buffered_worker.train(sync, range(4, 12))
    assert len(set(digests(sync))) == 1


@pytest.mark.parametrize("stop", [5, 8, 13])
@pytest.mark.parametrize("codec", FED_BACK, ids=name)
def test_a_resumed_simulation_is_an_unbroken_one(stop: int, codec: Codec) -> None:
    exchange = Buffered(size=2, speeds=UNEQUAL)
    whole = build(3, exchange, codec)
    expected = buffered_worker.train(whole, range(22))
    first = build(3, exchange, codec)
    notes = buffered_worker.train(first, range(stop), finish=False)
    saved = global_part(first.state), [island_part(first.state, i) for i in range(3)]
    saved = (
        ({k: t.clone() for k, t in saved[0][0].items()}, saved[0][1]),
        [({k: t.clone() for k, t in tensors.items()}, values) for tensors, values in saved[1]],
    )
    second = build(3, exchange, codec)
    load_global(second.state, saved[0])
    for i, part in enumerate(saved[1]):
        load_island(second.state, i, part)
    notes += buffered_worker.train(second, range(stop, 22))
    assert digests(second) == digests(whole)
    assert notes == expected
    assert second.transport.received_bytes == whole.transport.received_bytes


def test_fedprox_pulls_each_island_to_its_own_version() -> None:
    sync = build(2, Buffered(size=1, speeds=(1.0, 0.25)), clients=Clients(objective=FedProx(mu=0.5)))
    buffered_worker.train(sync, range(12), finish=False)
    assert sync.state.anchors[0][0].version > sync.state.anchors[0][1].version
    buffered_worker.train(sync, range(12, 16))
    assert len(set(digests(sync))) == 1


def test_what_does_not_go_together_is_refused() -> None:
    def refused(match: str, **settings: Any) -> None:
        models = [toy.Net(), toy.Net()]
        with pytest.raises(ConfigError, match=match) as caught:
            settings = {"exchange": Buffered(), **settings}
            LocalSGD(models, [toy.adamw(m) for m in models], every=4, **settings)
        assert "Fix: " in str(caught.value) and "\n" not in str(caught.value)

    refused("schedule = Growing", schedule=Growing(growth=1.3, longest=8))
    refused("schedule = EveryStep", schedule=EveryStep())
    refused("clients.local_steps", clients=Clients(local_steps=(4, 2)))
    refused("codec = Rqm", codec=Rqm(clip=0.1))
    refused("codec = Sign", codec=Sign(vote=True))
    refused("codec = LocalResidual", codec=LocalResidual(codec=TopK()))
    refused("exchange.size", exchange=Buffered(size=0))
    refused("exchange.speeds", exchange=Buffered(speeds=(1.0,)))
    refused("exchange.speeds", exchange=Buffered(speeds=(1.0, 1.5)))
    refused("exchange.max_staleness", exchange=Buffered(max_staleness=-1))
    refused("exchange.wait_s", exchange=Buffered(wait_s=math.nan))


def test_a_directory_log_is_ordered_private_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    one, two = DirectoryLog(path, 100), DirectoryLog(path, 100)
    assert [one.append(b"a"), two.append(b"b"), one.append(b"c")] == [0, 1, 2]
    assert list(two.read(0)) == [b"a", b"b", b"c"] and list(one.read(3)) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()} == {0o600}
    (path / "000000000003").write_bytes(b"x" * 101)
    (path / "000000000004").symlink_to(path / "000000000000")
    (path / "000000000005").mkdir()
    assert list(one.read(2)) == [b"c", b"", b"", b""]
    assert one.append(b"d") == 6
    with pytest.raises(SyncError, match="too large"):
        one.append(b"x" * 101)
    assert not list(path.glob(".*"))
    path.chmod(0o770)
    with pytest.raises(ConfigError, match="other users can write"):
        DirectoryLog(path, 100)


def test_many_writers_take_different_numbers(tmp_path: Path) -> None:
    seen = buffered_worker.run(3, tmp_path / "log", "write", tmp_path)
    assert sorted(p for one in seen.values() for p in one["positions"]) == list(range(60))
    entries = [e.decode() for e in DirectoryLog(tmp_path / "log", 100).read(0)]
    assert sorted(entries) == sorted(f"{k}:{n}" for k in range(3) for n in range(20))
    for k in range(3):
        assert [e for e in entries if e.startswith(f"{k}:")] == [f"{k}:{n}" for n in range(20)]


@pytest.mark.parametrize("codec", ["int4", "topk"])
def test_processes_go_on_when_one_is_killed_and_end_with_the_bits_of_the_log(codec: str, tmp_path: Path) -> None:
    """Island 2 is killed after its first contribution; nobody else ever waits for it but, at the end, for wait_s."""
    log = tmp_path / "log"
    seen = buffered_worker.run(3, log, codec, tmp_path, killed=2)
    assert sorted(seen) == [0, 1]
    assert seen[0]["digest"] == seen[1]["digest"] and seen[0]["model"] == seen[1]["model"] == seen[0]["weights"]
    entries = list(DirectoryLog(log, 1 << 20).read(0))
    kinds = [(Entry.unpack(e).kind, Entry.unpack(e).island) for e in entries]
    assert kinds.count((Kind.CONTRIBUTION, 2)) == 1 and (Kind.DONE, 2) not in kinds
    like = build(3, buffered_worker.exchange(None), buffered_worker.CODECS[codec])
    fold = folded_again(like, entries, seen[0]["run"])
    assert fold.anchor.digest().hex() == seen[0]["digest"]
    assert any("islands [2] were not done" in line for s in seen.values() for line in s["notes"])


def test_processes_without_a_log_are_refused(tmp_path: Path) -> None:
    seen = buffered_worker.run(2, None, "int4", tmp_path)
    assert all("exchange.log = None is not allowed" in s["error"] for s in seen.values())
    assert len(seen) == 2


def test_a_resumed_run_of_the_recipe_is_an_unbroken_one(tmp_path: Path) -> None:
    source = TextFiles(glob=str(write_corpus(tmp_path) / "*.txt"))
    base = dataclasses.replace(
        load("recipes/asynchronous.py:smoke"),
        steps=24,
        data=DataConfig(
            source=source,
            seq_len=16,
            batch_size=2,
            validation_sequences=4,
        ),
        model=ModelConfig(preset="nano", width=8),
        checkpoint=CheckpointConfig(every_rounds=None, export=False),
    )
    base = dataclasses.replace(base, sync=dataclasses.replace(base.sync, every=4))
    stop = CheckpointConfig(every_rounds=None, export=False, stop_at_step=14)
    assert run(dataclasses.replace(base, run_dir=tmp_path / "whole")) == 0
    assert run(dataclasses.replace(base, run_dir=tmp_path / "broken", checkpoint=stop)) == 3
    assert run(dataclasses.replace(base, run_dir=tmp_path / "broken", resume=True)) == 0
    weights = [json.loads((tmp_path / n / "summary.json").read_text())["weights_sha256"] for n in ("whole", "broken")]
    assert weights[0] == weights[1]
    for n in ("whole", "broken"):
        lines = (tmp_path / n / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        order = [str(row.get("note", "")).partition(": ")[2] for row in map(json.loads, lines)]
        (tmp_path / f"{n}.order").write_text("\n".join(dict.fromkeys(x for x in order if x.startswith("log "))))
    assert (tmp_path / "whole.order").read_text() == (tmp_path / "broken.order").read_text() != ""


def test_islands_of_several_ranks_and_averaged_buffers_are_refused() -> None:
    spec = SyncSpec(every=4, exchange=Buffered())
    with pytest.raises(ConfigError, match=r"island\.size = 2 is not allowed with sync\.exchange = Buffered"):
        check_islands(spec, 2, 2, ())
    with pytest.raises(ConfigError, match=r"buffers is not allowed with sync\.exchange = Buffered: bn would"):
        check_islands(spec, 2, 1, ("bn",))


def test_real_processes_need_a_log_before_anything_starts() -> None:
    config = dataclasses.replace(load("recipes/asynchronous.py:fedbuff"), transport="collective")
    check(config, 2)
    for exchange, match in ((Buffered(), r"exchange\.log = None"), (Buffered(speeds=(1.0, 1.0)), r"exchange\.speeds")):
        with pytest.raises(ConfigError, match=match):
            check(dataclasses.replace(config, sync=dataclasses.replace(config.sync, exchange=exchange)), 2)
