"""Seconds of one sync of 100 MB over a link with a long round trip: stock gloo beside one and several streams.

    python -m benchmarks.streams [--rate-mbit 1000] [--delay-ms 25] [--repeats 3]

Two hosts of benchmarks/netlab (root, iproute2). Every way is timed in turn, repeats interleaved; medians. `all_reduce`
is torch.distributed's on gloo; `sum` is lowcomm's ordered fp32 sum of the same 100 MB; `int8` and `int4` are its packed
exchange of the same vector. Each is timed on connections that an earlier transfer has warmed up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.common import write_result
from benchmarks.netlab import Lab, Link
from lowcomm.aggregate import Mean
from lowcomm.codec import Codec, Int4, Int8
from lowcomm.exchange.choose import way_of
from lowcomm.exchange.roll_call import call_roll
from lowcomm.state.anchor import Anchor
from lowcomm.state.fragment import Fragment
from lowcomm.state.outgoing import Outgoing
from lowcomm.transport import Collective
from lowcomm.types import Round

ELEMENTS = 25_000_000
STREAMS = (1, 4, 8)


def ways_of(transport: Collective) -> dict[str, Callable[[], object]]:
    """lowcomm's exchanges of one vector over this transport, by name."""
    fragment = Fragment({"w": torch.zeros(ELEMENTS)}, 2, torch.device("cpu"))
    anchor, delta = Anchor(fragment, 0, (0,)), torch.randn(fragment.size)
    current = Round(index=0, step=0, fragments=(0,), seed=1)

    def packed(codec: Codec) -> None:
        cohort = call_roll(transport, Mean(), current, [1.0], [1.0], 0.5)
        way_of(transport, codec, Mean()).carry(Outgoing.of(anchor, [delta], [{}], current), cohort)

    return {
        "sum": lambda: transport.weighted_sum([delta], [0.5, 0.5], fragment.mean),
        "int8": lambda: packed(Int8()),
        "int4": lambda: packed(Int4()),
    }


def worker(repeats: int, out: Path) -> None:
    """On each host: times of all ways, written by rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=600))
    stock = torch.ones(ELEMENTS)
    ways: dict[str, Callable[[], object]] = {"all_reduce": lambda: dist.all_reduce(stock)}
    for streams in STREAMS:
        found = ways_of(Collective(streams=streams, timeout_s=600))
        ways |= {f"{name}, streams: {streams}": way for name, way in found.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            dist.barrier()
            start = time.perf_counter()
            way()
            if turn:  # the first warms up connections and compiled code
                times[name].append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(times), encoding="utf-8")
    dist.barrier()
    os._exit(0)  # groups of several connections each take long to leave over this link


def measured(rate_mbit: float, delay_ms: float, repeats: int) -> dict[str, list[float]]:
    """Seconds of each way on two hosts that are brought up for it."""
    with tempfile.TemporaryDirectory() as directory, Lab(2, Link(rate_mbit=rate_mbit, delay_ms=delay_ms)) as lab:
        out = Path(directory) / "times.json"
        command = ["-m", "benchmarks.streams", "--worker", str(out), "--repeats", str(repeats)]
        lab.run_group(command, 29512, Path(directory))
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    """Bring up two hosts, time, write benchmarks/results/streams.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate-mbit", type=float, default=1000.0)
    parser.add_argument("--delay-ms", type=float, default=25.0, help="one way")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        worker(options.repeats, options.worker)
        return
    times = measured(options.rate_mbit, options.delay_ms, options.repeats)
    stock = statistics.median(times["all_reduce"])
    rows = [
        {
            "way": name,
            "rate_mbit": options.rate_mbit,
            "rtt_ms": 2 * options.delay_ms,
            "fp32_bytes": 4 * ELEMENTS,
            "seconds_s": statistics.median(t),
            "fastest_s": min(t),
            "slowest_s": max(t),
            "speedup_over_all_reduce": stock / statistics.median(t),
            "repeats": len(t),
        }
        for name, t in times.items()
    ]
    command = f"python -m benchmarks.streams --rate-mbit {options.rate_mbit:g} --delay-ms {options.delay_ms:g}"
    print(write_result("streams", f"{command} --repeats {options.repeats}", rows))


if __name__ == "__main__":
    main()
