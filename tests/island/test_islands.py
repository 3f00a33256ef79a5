"""Islands of several ranks: every kind keeps what a sync guarantees, shard by shard.

2 islands x 2 ranks in real processes over gloo, against two plain islands on the same batches in this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from lowcomm.transport import Simulated
from tests.support import island_worker
from tests.support.island_worker import COMBINATIONS, KINDS, STEPS
from tests.support.runs import ROOT, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1000)]  # the first test waits for all kinds, on a busy machine too
Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, long: bool) -> Results:
    """By kind what each of the four ranks saw."""
    out = tmp_path_factory.mktemp("islands")
    shared = {
        **os.environ,
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    }
    command = [sys.executable, "-m", "tests.support.island_worker", str(out), "long" if long else "short", *KINDS]
    done = subprocess.run(command, env=shared, cwd=ROOT, capture_output=True, text=True, timeout=900)
    found: Results = {}
    for kind in KINDS:
        paths = [out / f"{kind}.{rank}.json" for rank in range(4)]
        if not all(p.exists() for p in paths):
            raise AssertionError(f"{kind} did not end: {done.stderr[-3000:]}")
        found[kind] = [json.loads(p.read_text(encoding="utf-8")) for p in paths]
        for seen in found[kind]:
            assert "error" not in seen, f"{kind}: {seen['error']}"
    return found


def run_with(ranks: list[dict[str, Any]]) -> list[str]:
    """The combinations that a kind was run with; none is forgotten by one of its ranks."""
    found = [c for c in COMBINATIONS if c in ranks[0]]
    assert "fp32" in found and all(set(found) <= seen.keys() for seen in ranks)
    return found


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    """Two islands of one rank that train on the same batches, by combination."""
    torch.set_num_threads(1)
    return {c: island_worker.run(*island_worker.build("ddp", c, Simulated(2), None, 2)) for c in COMBINATIONS}


def whole(ranks: list[dict[str, Any]], combination: str, what: str = "weights") -> dict[str, list[float]]:
    """Parameters of island 0 as flat lists, put together from what its two ranks hold, in rank order."""
    pieces: dict[str, list[torch.Tensor]] = {}
    for seen in ranks[:2]:
        for name, values in seen[combination][what].items():
            pieces.setdefault(name, []).append(torch.tensor(values))
    columns = ranks[0][combination]["columns"]
    return {n: torch.cat(p, dim=int(n in columns)).flatten().tolist() for n, p in pieces.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_are_equal_bit_for_bit_after_every_sync(results: Results, kind: str) -> None:
    """Each shard on both islands, with every codec and schedule; and after the end the models hold them."""
    ranks = results[kind]
    for combination in run_with(results[kind]):
        for rank in (0, 1):
            a, b = ranks[rank][combination], ranks[rank + 2][combination]
            assert a["digests"] == b["digests"] and (a["digests"] or combination == "data-parallel"), combination
            assert a["weights"] == b["weights"] == a["held"] == b["held"], combination


@pytest.mark.parametrize("kind", KINDS)
def test_the_ranks_hold_every_parameter_once(results: Results, plain: dict[str, dict[str, Any]], kind: str) -> None:
    expected = {n: torch.tensor(w).numel() for n, w in plain["fp32"]["weights"].items()}
    assert {n: len(v) for n, v in whole(results[kind], "fp32").items()} == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_what_plain_islands_do(results: Results, plain: dict[str, dict[str, Any]], kind: str) -> None:
    """fp32, so that only the order of sums differs: 1e-4 of weights of the order 0.1 after 20 micro-batches.

    Ranks and micro-batches count different numbers of targets; with a mean of means the difference would be 0.08.
    """
    for combination in ("fp32", *(["data-parallel"] if "data-parallel" in run_with(results[kind]) else [])):
        found = whole(results[kind], combination)
        for name, values in plain[combination]["weights"].items():
            torch.testing.assert_close(
                torch.tensor(found[name]),
                torch.tensor(values).flatten(),
                rtol=0,
                atol=1e-4,
                msg=f"{combination} {name}",
            )
        assert results[kind][0][combination]["norm"] == pytest.approx(plain[combination]["norm"], rel=1e-4)


def test_zero_stages_and_offload_equal_each_other(results: Results) -> None:
    """To the bit with and without offload. Stages sum micro-batches and ranks in other orders: 1e-4, as above."""
    fp32 = {kind: whole(results[kind], "fp32") for kind in ("zero1", "zero2", "zero2-offload", "zero3")}
    for kind in ("zero2", "zero3"):
        for name, values in fp32[kind].items():
            torch.testing.assert_close(torch.tensor(values), torch.tensor(fp32["zero1"][name]), rtol=0, atol=1e-4)
    for combination in run_with(results["zero2"]):
        assert whole(results["zero2"], combination) == whole(results["zero2-offload"], combination)


def test_ddp_and_fsdp_islands_send_the_same_payloads(results: Results) -> None:
    """Both cut rows alike, so that codecs see the same shards. Weights: gradients are summed in one order by both."""
    for combination in run_with(results["ddp"]):
        a, b = results["ddp"], results["fsdp"]
        assert [r[combination]["sent"] for r in a] == [r[combination]["sent"] for r in b]
        assert whole(a, combination) == whole(b, combination)


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_exact(results: Results, kind: str) -> None:
    """Saved inside a round while a fragment is on its way, each rank its own part."""
    for seen in results[kind]:
        assert seen["resumed"] == {"same": True}


@pytest.mark.parametrize("kind", KINDS)
def test_an_island_sends_what_one_replica_would(results: Results, plain: dict[str, dict[str, Any]], kind: str) -> None:
    """fp32: 4 bytes per parameter and round, whatever the number of ranks; beside it per rank and round the roll call
    (32 B), the commit (1 B) and the comparison of digests (16 B), and per rank padding of a chunk to 2 islands."""
    ranks = results[kind]
    parameters = sum(torch.tensor(w).numel() for w in plain["fp32"]["weights"].values())
    rounds = len(ranks[0]["fp32"]["digests"])
    assert rounds == 3
    for island in (0, 1):
        sent = sum(ranks[2 * island + rank]["fp32"]["sent"] for rank in (0, 1))
        payload = rounds * parameters * 4
        extra = sent - payload - 2 * rounds * (32 + 1 + 16)
        assert 0 <= extra <= 8000  # the handshake's names, shapes and settings


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_and_export_see_the_whole_model(results: Results, kind: str) -> None:
    islands = island_worker.build("ddp", "fp32", Simulated(2), None, 2)[1]
    with torch.no_grad():
        expected = islands[0].token_losses(*island_worker.batches(0, 0)[0])
    state = {n: float(t.double().sum()) for n, t in sorted(islands[0].model.state_dict().items())}
    for rank, seen in enumerate(results[kind]):
        evaluated = seen["evaluated"]
        torch.testing.assert_close(torch.tensor(evaluated["losses"]), expected, rtol=0, atol=1e-5)
        assert evaluated["counts"] == list(islands[0].parameter_counts())
        if rank == 0 and kind in ("fsdp", "zero3", "pipeline", "tensor"):
            assert evaluated["state"] == pytest.approx(state, abs=1e-6)


def test_a_link_that_fails_between_two_ranks_tears_no_replica(results: Results) -> None:
    """In the sum, in packed payloads and in the roll call: no rank of any island commits, and the next step syncs."""
    ranks = results["fsdp"]
    for case in range(3):
        seen = [r["broken"][case] for r in ranks]
        for told in seen:
            assert "Nothing was committed" in told["error"]
            assert (told["pending"], told["round"], told["kept"]) == ([0], 0, True)
            assert told["later"] == [[], 1]
        assert seen[0]["weights"] == seen[2]["weights"] and seen[1]["weights"] == seen[3]["weights"]
        assert "lost its connection" in seen[0]["error"] and "failed." in seen[1]["error"]


def test_unequal_work_changes_weights_of_the_mean(plain: dict[str, dict[str, Any]]) -> None:
    """The tests above would not see a lost weight if all were equal: island 1 counts twice the tokens."""
    assert STEPS % island_worker.EVERY != 0
    assert len(set(plain["fp32"]["losses"])) == 2
