"""Secure aggregation: exact sums, bytes that say nothing, recovery of those that drop, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cryptography")

from lowcomm import checkpoint
from lowcomm.aggregate import Mean
from lowcomm.aggregate.lora import FedEx, FLoRA
from lowcomm.codec import TopK
from lowcomm.outer import SGD
from lowcomm.schedule import EveryH, EveryStep
from lowcomm.secure import SecureSum, dtype_of, from_fixed, to_fixed
from lowcomm.secure.party import Party
from lowcomm.secure.shamir import combine, split
from lowcomm.secure.unmask import masks_left
from lowcomm.state.spec import Clients, SyncSpec
from lowcomm.sync import LocalSGD
from lowcomm.sync.compatibility import check_spec
from lowcomm.trainer import train
from lowcomm.transport import Collective, Simulated, Transport
from lowcomm.transport.base import Arrival
from lowcomm.types import ConfigError, SyncError
from tests.support import runs, toy

N = 4


class Wire(Simulated):
    """Keeps the rows that leave each island, and spoils what some send."""

    def __init__(self, islands: int, broken: Sequence[int] = ()) -> None:
        super().__init__(islands)
        self.broken, self.rows = broken, list[list[bytes]]()

    def start_swap(self, rows: Sequence[Sequence[torch.Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        sent = [[r.clone() for r in row] for row in rows]
        masked = len(self.rows) % 2 == 1  # shares, then masked vectors
        for k in self.broken if masked else ():
            sent[k][0][0] ^= 1
        self.rows.append([b"".join(bytes(r.numpy()) for r in row) for row in rows])
        return super().start_swap(sent, sizes)


def build(transport: Transport, secure: SecureSum | None) -> LocalSGD:
    models = [toy.Net() for _ in transport.local]
    clients = Clients(secure=secure)
    inners = [toy.sgd(m) for m in models]
    return LocalSGD(models, inners, every=4, outer=SGD(lr=1.0), transport=transport, clients=clients)


def one_round(sync: LocalSGD) -> torch.Tensor:
    for step in range(4):
        toy.train_step(sync, step)
    return toy.flat(list(sync.weights().values()))


def plain_sum(left: Sequence[int], secure: SecureSum, islands: int = N) -> torch.Tensor:
    """Weights after a round whose sum is made of the same integers without masks."""
    sync = build(Simulated(islands), None)
    sync.state.spec = dataclasses.replace(sync.state.spec, schedule=EveryH())
    start = toy.flat(list(sync.weights().values()))
    local = [toy.Net() for _ in range(islands)]
    for k, model in enumerate(local):
        inner = toy.sgd(model)
        for step in range(4):
            x, y = toy.batch(k, step)
            (model(x) - y).square().mean().backward()
            inner.step()
            inner.zero_grad()
    tokens = [4.0 + k for k in range(islands)]
    weights = Mean().weights(tokens)
    total = np.zeros(len(start), dtype=dtype_of(secure.bits))
    for k in left:
        flat = start - toy.flat(list(local[k].parameters()))
        total = total + to_fixed(flat, weights[k], secure.limit, secure.bits)
    factor = 1 / sum(weights[k] for k in left)
    return start - torch.from_numpy(from_fixed(total, factor, secure.limit, secure.bits))


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_is_that_of_the_integers_exactly(bits: int) -> None:
    secure = SecureSum(bits=bits)  # pyright: ignore[reportArgumentType]
    got = one_round(build(Simulated(N), secure))
    assert torch.equal(got, plain_sum(range(N), secure))
    torch.testing.assert_close(got, one_round(build(Simulated(N), None)), rtol=1e-5, atol=1e-6)


def test_what_leaves_an_island_is_new_each_time_and_uniform() -> None:
    wires = [Wire(N), Wire(N)]
    results = [one_round(build(wire, SecureSum(bits=64))) for wire in wires]
    assert torch.equal(*results)
    first, second = (np.frombuffer(wire.rows[1][0], dtype=np.uint8) for wire in wires)
    assert len(first) > 500
    assert (first == second).mean() < 0.05  # 1 / 256 by chance
    for row in (first, second):
        ones = np.unpackbits(row).mean()
        assert abs(ones - 0.5) < 0.04, "masked integers of small size would be mostly zeros"


@pytest.mark.parametrize("broken", [(1,), (3,)])
def test_one_that_drops_after_its_shares_is_recovered(broken: tuple[int, ...]) -> None:
    secure = SecureSum()
    sync = build(Wire(N, broken), secure)
    reports = []
    sync.listeners.append(reports.append)
    got = one_round(sync)
    assert list(reports[0].dropped) == list(broken)
    assert torch.equal(got, plain_sum([k for k in range(N) if k not in broken], secure))


class Impostor(Wire):
    """Island 1 sends the masked vector that island 0 sends."""

    def start_swap(self, rows: Sequence[Sequence[torch.Tensor]], sizes: Sequence[Sequence[int]]) -> Arrival:
        masked = len(self.rows) % 2 == 1
        return super().start_swap([rows[0], rows[0], *rows[2:]] if masked else rows, sizes)


def test_the_masked_vector_of_another_island_is_left_out() -> None:
    sync = build(Impostor(N), secure := SecureSum())
    reports = []
    sync.listeners.append(reports.append)
    got = one_round(sync)
    assert "masked vector is damaged, or of another island" in reports[0].dropped[1]
    assert torch.equal(got, plain_sum([0, 2, 3], secure))


def test_fewer_than_the_threshold_commit_nothing() -> None:
    sync = build(Wire(N, (1, 2)), SecureSum())
    before = toy.flat(list(sync.weights().values()))
    with pytest.raises(SyncError, match=r"2 of 4 parties are left, sync\.secure needs 3"):
        one_round(sync)
    assert sync.round == 0 and torch.equal(before, toy.flat(list(sync.weights().values())))


def test_shares_are_never_given_for_two_sums() -> None:
    parties = [Party(k, b"x") for k in range(3)]
    adverts = {k: p.advert() for k, p in enumerate(parties)}
    dealt = [p.deal(adverts, 2) for p in parties]
    assert parties[0].receive({1: dealt[1][0], 2: dealt[2][0]}) == []
    assert parties[1].receive({0: dealt[2][1]}) == [0]  # sealed by another
    parties[0].shares([0, 1, 2])
    with pytest.raises(SyncError, match="two different sets"):
        parties[0].shares([0, 1])


@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_any_threshold_of_shares_gives_the_secret_and_fewer_do_not(threshold: int) -> None:
    secret = os.urandom(32)
    shares = split(secret, [0, 2, 3, 7, 9], threshold)
    chosen = dict(list(shares.items())[-threshold:])
    assert combine(chosen) == secret
    chosen.popitem()
    assert combine(chosen) != secret


def client_main(k: int, wire: Connection, dies: bool) -> None:
    """A client in a process of its own; one that dies is gone after its shares."""
    party = Party(k, b"real")
    wire.send_bytes(party.advert())
    adverts = {int(j): bytes.fromhex(a) for j, a in json.loads(wire.recv_bytes()).items()}
    dealt = party.deal(adverts, 3)
    wire.send_bytes(json.dumps({j: m.hex() for j, m in dealt.items()}).encode())
    party.receive({int(j): bytes.fromhex(m) for j, m in json.loads(wire.recv_bytes()).items()})
    if dies:
        os._exit(1)
    wire.send_bytes(party.masked(np.full(50, k + 1, dtype=np.uint32)).tobytes())
    given = party.shares(json.loads(wire.recv_bytes()))
    wire.send_bytes(json.dumps({j: s.hex() for j, s in given.items()}).encode())


def test_real_processes_one_of_which_dies() -> None:
    context = runs.forkserver()
    pipes = [context.Pipe() for _ in range(N)]
    children = [context.Process(target=client_main, args=(k, p[1], k == 2)) for k, p in enumerate(pipes)]
    for child, pipe in zip(children, pipes, strict=True):
        child.start()
        pipe[1].close()
    ends = [p[0] for p in pipes]
    adverts = {k: e.recv_bytes() for k, e in enumerate(ends)}
    for e in ends:
        e.send_bytes(json.dumps({k: a.hex() for k, a in adverts.items()}).encode())
    dealt = [json.loads(e.recv_bytes()) for e in ends]
    for k, e in enumerate(ends):
        e.send_bytes(json.dumps({j: dealt[j][str(k)] for j in range(N) if j != k}).encode())
    total, left = np.zeros(50, dtype=np.uint32), list[int]()
    for k, e in enumerate(ends):
        try:
            row = np.frombuffer(e.recv_bytes(), dtype=np.uint32)
        except EOFError:
            continue
        assert not (row == k + 1).any()
        total, left = total + row, [*left, k]
    shares = {}
    for k in left:
        ends[k].send_bytes(json.dumps(left).encode())
        shares[k] = {int(j): bytes.fromhex(s) for j, s in json.loads(ends[k].recv_bytes()).items()}
    for child in children:
        child.join(30)
    assert left == [0, 1, 3]
    assert (total - masks_left(adverts, left, shares, 3, b"real", 0, total) == 1 + 2 + 4).all()
    with pytest.raises(SyncError, match="2 shares came, 3 are needed"):
        masks_left(adverts, left, {k: shares[k] for k in (0, 1)}, 3, b"real", 0, total)


def island_main(out: str) -> int:
    transport = Collective.open(torch.device("cpu"), 60.0)
    torch.set_num_threads(1)
    sync = build(transport, SecureSum())
    weights = one_round(sync)
    seen = {"weights": weights.tolist(), "sent": transport.sent_bytes[0]}
    Path(out, f"{transport.local[0]}.json").write_text(json.dumps(seen), encoding="utf-8")
    transport.close()
    return 0


def test_processes_give_the_simulations_bits_and_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    started = [runs.start(island_main, (str(tmp_path),), log, e) for e in runs.islands_environment(3)]
    assert [runs.wait(child, log) for child in started] == [0, 0, 0], log.read_text(encoding="utf-8")
    sync = build(Simulated(3), SecureSum())
    weights = one_round(sync).tolist()
    for k in range(3):
        seen = json.loads((tmp_path / f"{k}.json").read_text(encoding="utf-8"))
        assert seen == {"weights": weights, "sent": sync.transport.sent_bytes[k]}


def doomed_run(corpus: str, run_dir: str, victim: int) -> int:
    """`lowcomm train`; the victim dies in the second masked exchange, before its masked vector is away."""
    swap, exchanges = Collective._swap_living, []  # pyright: ignore[reportPrivateUsage]

    def doomed(
        self: Collective, sends: Sequence[torch.Tensor], receives: Sequence[torch.Tensor]
    ) -> list[list[torch.Tensor | None]]:
        masked = sends[0].numel() > 10_000
        exchanges.extend([1] if masked else [])
        if masked and len(exchanges) == 3 and self.local[0] == victim:  # vectors and sums take turns
            os.kill(os.getpid(), signal.SIGKILL)
        return swap(self, sends, receives)

    config = runs.small(Path(corpus), Path(run_dir), islands=None, transport="collective")
    config = dataclasses.replace(config, sync=dataclasses.replace(config.sync, secure=SecureSum()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Collective, "_swap_living", doomed)
        try:
            return train(config)
        except SyncError as error:
            print(error)
            return 1


@pytest.mark.parametrize("victim", [2, 0])
def test_a_run_goes_on_without_a_site_that_died_be_it_the_one_that_writes(tmp_path: Path, victim: int) -> None:
    (tmp_path / "corpus").mkdir()
    corpus, run_dir, log = runs.write_corpus(tmp_path / "corpus"), tmp_path / "run", tmp_path / "log"
    arguments = (str(corpus), str(run_dir), victim)
    started = [runs.start(doomed_run, arguments, log, e) for e in runs.islands_environment(N)]
    codes = [runs.wait(child, log) for child in started]
    said = log.read_text(encoding="utf-8")
    assert codes == [-signal.SIGKILL if k == victim else 0 for k in range(N)], said
    lines, found = runs.metrics(run_dir), runs.summary(run_dir)
    lost = [line for line in lines if line["event"] == "lost"]
    survivors = [k for k in range(N) if k != victim]
    assert {line["island"] for line in lost} <= set(survivors) and lost
    assert all(f"island {victim} is gone: the run goes on without it" in line["note"] for line in lost)
    notes = {line["note"] for line in lines if line["event"] == "note"}
    assert f"island {victim} was left out of round 1: its process is gone" in notes
    assert (found["status"], found["rounds"], list(found["lost"])) == ("done", 3, [str(victim)])
    assert found["tokens"] == 3 * 12 * 64, "what the survivors trained"
    saves = run_dir / "checkpoints"
    assert checkpoint.names(saves) == ["000001", "000002", "000003"]
    assert checkpoint.lost(saves) == dict.fromkeys(["000002", "000003"], frozenset({victim}))


def test_what_needs_each_contribution_is_refused() -> None:
    secure = SecureSum()
    check_spec(SyncSpec(every=4, clients=Clients(secure=secure)))
    for rule in (FLoRA(rank=4), FedEx(rank=4)):
        with pytest.raises(ConfigError, match=r"it must see each contribution.*Fix: "):
            check_spec(SyncSpec(every=4, clients=Clients(secure=secure), aggregator=rule, outer=SGD(lr=1.0)))
    with pytest.raises(ConfigError, match=r"sync\.codec = TopK.*added as integers.*Fix: "):
        check_spec(SyncSpec(every=4, clients=Clients(secure=secure), codec=TopK()))
    with pytest.raises(ConfigError, match=r"averaged gradients are not masked.*Fix: "):
        check_spec(SyncSpec(every=4, clients=Clients(secure=secure), schedule=EveryStep()))
    with pytest.raises(ConfigError, match=r"sync\.secure\.threshold = 0\.5 is not allowed"):
        check_spec(SyncSpec(every=4, clients=Clients(secure=SecureSum(threshold=0.5))))
