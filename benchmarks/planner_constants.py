"""The constants of the planner, measured on the shaped network.

    python -m benchmarks.planner_constants

`round_trips`: median seconds of each exchange of a short vector at 50 ms, over 50 ms, for 2, 3 and 4 hosts; what the
planner counts stands beside it. `codec`: seconds per parameter of an exchange of 4M elements between two processes on
the loopback device, one thread each; `local`: of pseudo-gradient, outer step, new weights and digest; the
fastest turn of several launches, since other programs share the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.common import ROOT, write_result
from benchmarks.netlab import Lab, Link
from lowcomm.aggregate import Mean
from lowcomm.codec import Codec, ErrorFeedback, Fp32, Int4, Int8, TopK, TwoBit
from lowcomm.exchange.choose import way_of
from lowcomm.exchange.roll_call import call_roll
from lowcomm.outer import Nesterov
from lowcomm.plan.codecs import CODECS
from lowcomm.plan.runtime import LOCAL_S_PER_PARAMETER
from lowcomm.plan.traffic import traffic
from lowcomm.state.anchor import Anchor
from lowcomm.state.fragment import Fragment
from lowcomm.state.outgoing import Outgoing
from lowcomm.transport import Collective
from lowcomm.types import Round

SHORT, LONG, RTT_MS, TURNS, LAUNCHES = 1000, 4_000_000, 50.0, 9, 4
REAL: dict[str, Codec] = {
    "fp32": Fp32(),
    "int8": ErrorFeedback(codec=Int8()),
    "int4": ErrorFeedback(codec=Int4()),
    "two_bit": ErrorFeedback(codec=TwoBit()),
    "topk": ErrorFeedback(codec=TopK(chunk=4096, k=64, bits=2), beta=0.95),
}


def exchanges(transport: Collective, numel: int) -> dict[str, Callable[[], object]]:
    """Each codec's exchange, roll call included and the last digest not, and the local part."""
    fragment = Fragment({"w": torch.zeros(numel)}, transport.islands, torch.device("cpu"))
    delta, params = torch.randn(fragment.size), [nn.Parameter(torch.zeros(numel))]
    current = Round(index=0, step=0, fragments=(0,), seed=1)
    anchor = Anchor(fragment, 0, (0,))
    anchor.build_outer(Nesterov())

    def exchange(codec: Codec) -> None:
        cohort = call_roll(transport, Mean(), current, [1.0], [1.0], 0.5)
        out = Outgoing.of(anchor, [delta], [codec.init(anchor.named)], current)
        way_of(transport, codec, Mean()).carry(out, cohort)

    def local() -> None:
        anchor.delta_of(params, 0)
        anchor.step(fragment.mean)
        anchor.write([params])

    ways: dict[str, Callable[[], object]] = {name: (lambda c=codec: exchange(c)) for name, codec in REAL.items()}
    return {**ways, "local": local}


@torch.no_grad()
def worker(numel: int, out: Path) -> None:
    """On each host; rank 0 writes medians and fastest turns."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=200))
    ways = exchanges(Collective(timeout_s=200), numel)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 2):
        for name, way in ways.items():
            dist.barrier()
            start = time.perf_counter()
            way()
            if turn > 1:  # the first ones compile and fill caches
                times[name].append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        found = {name: (statistics.median(t), min(t)) for name, t in times.items()}
        out.write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    os._exit(0)


def medians(hosts: int, link: Link, numel: int) -> dict[str, float]:
    """Seconds of each way on `hosts` hosts."""
    with tempfile.TemporaryDirectory() as directory, Lab(hosts, link) as lab:
        out, children = Path(directory) / "times.json", []
        for host in range(1, hosts + 1):
            command = [
                sys.executable,
                "-m",
                "benchmarks.planner_constants",
                "--worker",
                str(out),
                "--numel",
                str(numel),
            ]
            environment = {
                "RANK": str(host - 1),
                "WORLD_SIZE": str(hosts),
                "MASTER_ADDR": "10.78.0.1",
                "MASTER_PORT": "29514",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
            }
            children.append(lab.start(host, command, environment, Path(directory) / f"host{host}.log"))
        if any(child.wait() for child in children):
            raise SystemExit((Path(directory) / "host1.log").read_text(encoding="utf-8")[-4000:])
        found = json.loads(out.read_text(encoding="utf-8"))
        return {name: median for name, (median, _) in found.items()}


def on_loopback(numel: int) -> dict[str, float]:
    """Seconds of each way between two processes of this machine, the fastest turn of all launches."""
    launches = []
    for _ in range(LAUNCHES):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "times.json"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
            command += ["benchmarks.planner_constants", "--worker", str(out), "--numel", str(numel)]
            subprocess.run(command, check=True, cwd=ROOT)
            launches.append(json.loads(out.read_text(encoding="utf-8")))
    return {name: min(launch[name][1] for launch in launches) for name in launches[0]}


def main() -> None:
    """Measure, print, write results/planner_constants.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--numel", type=int, default=SHORT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.numel, options.worker)
        return
    rows: list[dict[str, Any]] = []
    for hosts in (2, 3, 4):
        found = medians(hosts, Link(delay_ms=RTT_MS / 2), SHORT)
        for codec in CODECS:
            planned = traffic(codec, SHORT, hosts).round_trips - (hosts - 1)  # without the digests
            measured = 1000 * found[codec.name] / RTT_MS
            rows.append(
                {"what": "round_trips", "codec": codec.name, "hosts": hosts, "measured": measured, "planned": planned}
            )
    found = on_loopback(LONG)
    planned = {codec.name: codec.codec_s_per_parameter for codec in CODECS}
    for name, seconds in found.items():
        what = "local" if name == "local" else "codec"
        used = planned.get(name, LOCAL_S_PER_PARAMETER)
        rows.append({"what": what, "codec": name, "hosts": 2, "measured": seconds / LONG, "planned": used})
    for row in rows:
        print(row)
    print(write_result("planner_constants", "python -m benchmarks.planner_constants", rows))


if __name__ == "__main__":
    main()
