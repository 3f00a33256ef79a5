"""What test_collective.py runs in real processes under torchrun; prints one JSON line per rank to a file.

python -m tests.support.gloo_worker JOB OUT_DIR
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from lowcomm.exchange.modest import Modest
from lowcomm.outer import SGD
from lowcomm.run.cadence import agree_on_start
from lowcomm.schedule import EveryH, Streaming
from lowcomm.state.deadlines import Late
from lowcomm.sync import LocalSGD
from lowcomm.transport import Collective, Simulated
from lowcomm.transport.base import Altered
from lowcomm.types import DivergenceError, SyncError
from tests.support import gossiping, toy


def bytes_on_the_wire() -> dict[str, int]:
    """Counted bytes of five sums and gathers of 4 MB, beside what the loopback interface carried."""
    transport = Collective()
    vector, out = torch.randn(1 << 20), torch.empty(1 << 20)
    transport.weighted_sum([vector], [0.5, 0.5], out)  # connections are made
    dist.barrier()
    before, counted = _loopback_bytes(), transport.sent_bytes[0]
    dist.barrier()
    for _ in range(5):
        transport.weighted_sum([vector], [0.25, 0.75], out)
        transport.gather([torch.zeros(1 << 20, dtype=torch.uint8)])
        transport.gather_sized([torch.zeros((1 << 20) + transport.local[0], dtype=torch.uint8)])
    dist.barrier()
    time.sleep(0.3)
    speed = int(transport.link_bytes_per_s or 0)
    return {"interface": _loopback_bytes() - before, "counted": transport.sent_bytes[0] - counted, "speed": speed}


def _loopback_bytes() -> int:
    line = next(
        x for x in Path("/proc/net/dev").read_text(encoding="ascii").splitlines() if x.strip().startswith("lo:")
    )
    return int(line.split(":")[1].split()[8])


def mismatch() -> dict[str, str]:
    """Rank 1 comes with another period, with another model, and with one flipped bit in its global weights."""
    rank = dist.get_rank()

    def other_shape() -> None:
        model = toy.Net()
        model.scale = torch.nn.Parameter(torch.ones((2,) * rank))
        LocalSGD(model, toy.sgd(model), every=4)

    def flipped_bit() -> None:
        sync = toy.build(1, outer=SGD(lr=1.0))
        for step in range(2 * toy.EVERY):
            toy.train_step(sync, step)
            if rank == 1 and step == toy.EVERY:
                sync.weights()["middle.weight"].view(torch.int32)[2, 3] ^= 1 << 12

    cases = {"period": lambda: toy.build(1, every=4 + rank), "shape": other_shape, "bit": flipped_bit}
    seen = {}
    for case, run in cases.items():
        try:
            run()
        except DivergenceError as error:
            seen[case] = str(error)
    return seen


def killed_peer() -> dict[str, object]:
    """The last rank dies in its inner steps; the others find out at the sync and keep what they have."""
    sync = toy.build(1)
    for step in range(toy.EVERY):
        toy.train_step(sync, step)
    committed = toy.flat(list(sync.weights().values()))
    for step in range(toy.EVERY, 2 * toy.EVERY):
        if dist.get_rank() == dist.get_world_size() - 1 and step == toy.EVERY + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.monotonic()
        try:
            toy.train_step(sync, step)
        except SyncError as error:
            local = toy.flat(sync.replicas[0].tensors(sync.state.fragments[0]))
            return {
                "error": str(error),
                "waited_s": time.monotonic() - start,
                "round": sync.round,
                "pending": list(sync.pending),
                "global_kept": torch.equal(committed, toy.flat(list(sync.weights().values()))),
                "local_kept": not torch.equal(local, committed) and bool(torch.isfinite(local).all()),
            }
    return {"error": "nobody noticed"}


def late() -> dict[str, object]:
    """Rank 1 stops for a second before the first exchange; the second has a slow wire; it dies before the third."""
    schedule, rank = Streaming(fragments=1, delay=1), dist.get_rank()

    class Wire(Collective):
        slow_s = 0.0

        def weighted_sum(self, vectors: Sequence[torch.Tensor], weights: Sequence[float], out: torch.Tensor) -> Altered:
            time.sleep(self.slow_s)
            return super().weighted_sum(vectors, weights, out)

    wire = Wire()
    sync = toy.build(1, schedule=schedule, transport=wire)
    told: list[Late] = []
    sync.deadlines.listeners.append(told.append)
    time.sleep(0.5 * rank)  # processes never start at once
    seen: dict[str, object] = {"clock_start": agree_on_start(wire, 2.0 + rank)}
    for step in range(3 * toy.EVERY + 1):
        if step == toy.EVERY - 1 and rank == 1:
            subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {os.getpid()}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        if step == toy.EVERY and rank == 1:
            sync.wait()  # it came last: nothing is late for it, however busy this machine is
        wire.slow_s = 0.5 if step == 2 * toy.EVERY - 1 else wire.slow_s
        if step == 2 * toy.EVERY + 1:
            wire.slow_s = 0.0
            seen["weights"] = toy.flat(list(sync.weights().values())).tolist()
        if step == 3 * toy.EVERY - 1 and rank == 1:
            break
        try:
            toy.train_step(sync, step)
        except SyncError:
            assert sync.pending == (0,)
    again = toy.build(2, schedule=schedule, transport=Simulated(2))
    for step in range(2 * toy.EVERY + 1):
        toy.train_step(again, step)
    return {
        **seen,
        "weights_of_the_simulation": toy.flat(list(again.weights().values())).tolist(),
        "causes": [x.cause for x in told],
        "details": [x.detail for x in told],
        "waited_s": [x.waited_s for x in told],
    }


def uneven() -> dict[str, object]:
    """Rank k has 3 k more batches than rank 0; exchanges of one schedule run beside training."""
    seen: dict[str, object] = {}
    for schedule in (EveryH(), Streaming(fragments=1, delay=1)):
        sync = toy.build(1, schedule=schedule)
        for step in range(10 + 3 * dist.get_rank()):
            toy.train_step(sync, step)
        sync.finish()
        seen[repr(schedule)] = [sync.round, toy.flat(list(sync.weights().values())).tolist()]
    return seen


def messages() -> dict[str, list[int]]:
    """By topology: the ranks that this one sent something to in three rounds, at torch.distributed; no collectives."""
    seen: dict[str, list[int]] = {}
    send, gather = dist.isend, dist.all_gather_single
    for case in ("ring, fp32, D-SGD", "one peer, two steps", "multigraph"):
        sync, sent = gossiping.build_case(case, Collective(), local=1), list[int]()

        def counted(
            tensor: torch.Tensor, *, group: dist.ProcessGroup | None, group_dst: int, sent: list[int] = sent
        ) -> dist.Work | None:
            sent.append(group_dst)
            return send(tensor, group=group, group_dst=group_dst)

        dist.isend, dist.all_gather_single = counted, None  # pyright: ignore[reportAttributeAccessIssue]
        for step in range(3 * toy.EVERY):
            gossiping.train_step(sync, step)
        dist.isend, dist.all_gather_single = send, gather
        seen[case] = sent
    return seen


def gossip() -> dict[str, object]:
    """Every case of gossiping.py; then the last island of a ring dies in its inner steps, and the others go on."""
    seen: dict[str, object] = {
        name: gossiping.trajectory(gossiping.build_case(name, Collective(), local=1)) for name in gossiping.CASES
    }
    seen["messages"] = messages()
    sync = gossiping.build_case("ring, int4, momentum", Collective(), local=1)
    dropped: list[list[int]] = []
    weights: list[list[float]] = []
    sync.listeners.append(lambda report: dropped.append(sorted(report.dropped)))
    sync.listeners.append(lambda report: weights.append(report.weights))
    for step in range(3 * toy.EVERY):
        if dist.get_rank() == 3 and step == toy.EVERY + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        toy.train_step(sync, step)
    sync.finish()
    return {**seen, "dropped": dropped, "weights": weights, "mean": toy.flat(list(sync.weights().values())).tolist()}


def samples() -> dict[str, object]:
    """MoDeST among four, of which the last dies in its second round; the others go on as samples of three."""
    sync = gossiping.build(4, transport=Collective(), local=1, choice=Modest(sample=3, aggregators=2))
    weights: list[list[float]] = []
    sync.listeners.append(lambda report: weights.append(report.weights))
    for step in range(6 * toy.EVERY):
        if dist.get_rank() == 3 and step == toy.EVERY + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        gossiping.train_step(sync, step)
    sync.finish()
    mean = toy.flat(list(sync.weights().values())).tolist()
    return {"weights": weights, "mean": mean, "tokens": sync.replicas[0].tokens}


JOBS = {
    "samples": samples,
    "uneven": uneven,
    "gossip": gossip,
    "late": late,
    "bytes_on_the_wire": bytes_on_the_wire,
    "mismatch": mismatch,
    "killed_peer": killed_peer,
}


def run(job: str, out: str) -> None:
    """Run one job in this rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    result = JOBS[job]()
    (Path(out) / f"{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)  # a group with a dead member can't be left in good order


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2])
