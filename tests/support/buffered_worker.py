"""Real processes that contribute to a log in a directory, forked from the test's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lowcomm.aggregate import Mean
from lowcomm.arrival import Timed
from lowcomm.codec import Codec, ErrorFeedback, Int4, TopK
from lowcomm.exchange.buffered import Buffered
from lowcomm.exchange.log import DirectoryLog
from lowcomm.exchange.log_follower import LogFollower
from lowcomm.outer import Nesterov
from lowcomm.sync import LocalSGD
from lowcomm.transport import Collective
from lowcomm.types import LowcommError
from tests.support import toy

ROOT = Path(__file__).resolve().parents[2]
CODECS: dict[str, Codec] = {
    "int4": ErrorFeedback(codec=Int4()),
    "timed": ErrorFeedback(codec=Int4()),
    "topk": ErrorFeedback(codec=TopK(chunk=64, k=8), beta=0.95),
}
STEPS = 4 * toy.EVERY + 2


def exchange(log: Path | None, codec: str = "int4") -> Buffered:
    if codec == "timed":  # shorter than any step
        return Buffered(rule=Timed(every_s=1e-4), goes_on="own", wait_s=2.0, log=log)
    return Buffered(size=2, wait_s=2.0, log=log)


def step(sync: LocalSGD, local: int, tick: int) -> None:
    """An inner step of a local island."""
    replica = sync.replicas[local]
    x, y = toy.batch(sync.transport.local[local], tick)
    (replica.model(x) - y).square().mean().backward()
    sync.count_tokens(len(x), local)
    replica.inner.step()
    replica.inner.zero_grad()


def island(log: Path | None, codec: str, killed: int | None) -> dict[str, Any]:
    """Train this process's island to the end; `killed` dies by SIGKILL in its second round."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    model, notes = toy.Net(), list[str]()
    try:
        sync = LocalSGD(
            model, toy.adamw(model), every=toy.EVERY, outer=Nesterov(lr=0.7, momentum=0.6), codec=CODECS[codec],
            exchange=exchange(log, codec), aggregator=Mean(by="uniform"), transport=Collective(),
        )  # fmt: skip
    except LowcommError as error:
        return {"error": str(error)}
    sync.listeners.append(lambda report: notes.extend(report.notes))
    for tick in range(STEPS):
        step(sync, 0, tick)
        if dist.get_rank() == killed and tick == toy.EVERY + 1:
            os.kill(os.getpid(), signal.SIGKILL)
    sync.finish()
    flat = toy.flat(list(sync.weights().values())).tolist()
    return {
        "digest": sync.state.anchors[0][0].digest().hex(), "run": sync.state.run_id, "notes": notes,
        "model": toy.flat(sync.replicas[0].tensors(sync.state.fragments[0])).tolist(), "weights": flat,
    }  # fmt: skip


def writer(log: Path, number: int) -> dict[str, Any]:
    """Append twenty entries."""
    one = DirectoryLog(log, 100)
    return {"positions": [one.append(f"{number}:{n}".encode()) for n in range(20)]}


def run(islands: int, log: Path | None, job: str, out: Path, killed: int | None = None) -> dict[int, dict[str, Any]]:
    """What each process that lived returned, by number. job: a codec's name, or "write"."""
    command = [
        sys.executable,
        "-m",
        "tests.support.buffered_worker",
        str(islands),
        str(log or ""),
        job,
        str(out),
        str(killed),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return {int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in out.glob("*.json")}


def main() -> None:
    """Fork the processes before anything has started a thread, and wait for them."""
    islands, log, job, out, killed = sys.argv[1:]
    path = Path(log) if log else None
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"WORLD_SIZE": islands, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    children: list[int] = []
    for rank in range(int(islands)):
        child = os.fork()
        if not child:
            os.environ["RANK"] = str(rank)
            try:
                dead = None if killed == "None" else int(killed)
                seen = writer(Path(log), rank) if job == "write" else island(path, job, dead)
            except Exception:
                seen = {"error": traceback.format_exc()}
            (Path(out) / f"{rank}.json").write_text(json.dumps(seen), encoding="utf-8")
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def train(sync: LocalSGD, ticks: Sequence[int], finish: bool = True) -> list[str]:
    """The lines that reports give."""
    notes: list[str] = []
    sync.listeners.append(lambda report: notes.extend(report.notes))
    for tick in ticks:
        for i in range(len(sync.replicas)):
            if sync.rests(i):
                sync.rest(i)
            else:
                step(sync, i, tick)
    if finish:
        sync.finish()
    return notes


def follower(sync: LocalSGD) -> LogFollower:
    assert isinstance(sync.state.exchange, LogFollower)
    return sync.state.exchange


if __name__ == "__main__":
    main()
