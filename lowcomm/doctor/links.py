"""Measured links between every pair of ranks, for `lowcomm doctor` under torchrun."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import combinations
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT_S = 600
_PINGS = 21
_WARM_PINGS = 5
_TRANSFERS = 3
_SLOW_TRANSFER_S = 2.0
_LABEL_BYTES = 160


@dataclass(frozen=True, kw_only=True)
class Links:
    """Measured links. `[i][j]` is rank i to rank j; None on the diagonal."""

    labels: list[str]
    """By rank: "host|torch version|lowcomm version"."""
    latency_ms: list[list[float | None]]
    """One way: half the median round trip of 8 bytes; symmetric."""
    bandwidth_mb_per_s: list[list[float | None]]
    """10^6 bytes per second of one payload at a time, its acknowledgement included."""
    payload_bytes: int


def measure_links(backend: str, label: str, payload_bytes: int) -> tuple[Links, int]:
    """Latency and bandwidth of every pair, one pair at a time so that pairs do not share a cable, and the rank.

    Collective: every rank calls it, with the torchrun environment set. A group that exists already is used.
    Raises what torch raises when a peer cannot be reached.
    """
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    own_group = not dist.is_initialized()
    if own_group:
        bound = device if device.type == "cuda" else None
        dist.init_process_group(backend, timeout=timedelta(seconds=_TIMEOUT_S), device_id=bound)
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        table = torch.zeros(2, world, world, dtype=torch.float64)
        for low, high in combinations(range(world), 2):
            dist.barrier()
            if rank in (low, high):
                _measure_pair(table, (low, high), torch.zeros(payload_bytes, dtype=torch.uint8, device=device))
        table = table.to(device)
        dist.all_reduce(table)  # each entry has one writer: the sum is a copy
        labels = _gather_labels(label, device)
    finally:
        if own_group:
            dist.destroy_process_group()
    latency, bandwidth = _rows(table[0].cpu()), _rows(table[1].cpu())
    return Links(labels=labels, latency_ms=latency, bandwidth_mb_per_s=bandwidth, payload_bytes=payload_bytes), rank


def _rows(matrix: Tensor) -> list[list[float | None]]:
    values = matrix.tolist()
    return [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(values)]


def _measure_pair(table: Tensor, pair: tuple[int, int], payload: Tensor) -> None:
    """Fill this rank's entries of `table` (2, world, world): latency in ms, bandwidth in MB/s."""
    low, high = pair
    me = dist.get_rank()
    peer = high if me == low else low
    ping = torch.zeros(8, dtype=torch.uint8, device=payload.device)
    trips: list[float] = []
    for _ in range(_WARM_PINGS + _PINGS):
        trips.append(_round_trip(ping, ping, peer, first=me == low))
    if me == low:
        table[0, low, high] = table[0, high, low] = statistics.median(trips[_WARM_PINGS:]) * 500
    for source in pair:
        seconds = _transfer_s(payload, peer, sends=me == source)
        if me == source:
            table[1, me, peer] = payload.numel() / seconds / 1e6


def _transfer_s(payload: Tensor, peer: int, *, sends: bool) -> float:
    """Median seconds of a payload and its acknowledgement; on a slow link one transfer must do."""
    ack = torch.zeros(8, dtype=torch.uint8, device=payload.device)
    first = _round_trip(payload, ack, peer, first=sends)
    count = torch.tensor([0 if first > _SLOW_TRANSFER_S else _TRANSFERS], device=payload.device)
    _finish(dist.isend(count, peer) if sends else dist.irecv(count, peer), payload.device)
    again = [_round_trip(payload, ack, peer, first=sends) for _ in range(int(count.item()))]
    return statistics.median(again or [first])


def _round_trip(out: Tensor, back: Tensor, peer: int, *, first: bool) -> float:
    """Seconds for `out` to go from the `first` side to the other and `back` to return."""
    start = time.perf_counter()
    for tensor, sends in ((out, first), (back, not first)):
        _finish(dist.isend(tensor, peer) if sends else dist.irecv(tensor, peer), tensor.device)
    return time.perf_counter() - start


def _finish(work: dist.Work | None, device: torch.device) -> None:
    if work is not None:
        work.wait()
    if device.type == "cuda":  # wait() only orders the stream
        torch.cuda.synchronize(device)


def _gather_labels(label: str, device: torch.device) -> list[str]:
    # As bytes: the object collectives would pickle.
    data = label.encode()[:_LABEL_BYTES].ljust(_LABEL_BYTES, b"\0")
    mine = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    gathered = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, mine)
    return [bytes(t.cpu().tolist()).rstrip(b"\0").decode(errors="replace") for t in gathered]


def as_facts(links: Links) -> dict[str, Any]:
    """What the JSON of the doctor holds about the links, verdict included."""
    return asdict(links) | {"verdict": verdict(links)}


def version_notes(labels: list[str]) -> list[str]:
    versions = sorted({label.partition("|")[2] for label in labels})
    if len(versions) == 1:
        return []
    return [f"ranks run different torch|lowcomm versions: {', '.join(versions)}; install the same everywhere"]


def verdict(links: Links) -> str:
    pairs = [(i, j) for i, row in enumerate(links.bandwidth_mb_per_s) for j, v in enumerate(row) if v is not None]
    slow = min(pairs, key=lambda p: links.bandwidth_mb_per_s[p[0]][p[1]] or 0.0)
    fast = max(pairs, key=lambda p: links.bandwidth_mb_per_s[p[0]][p[1]] or 0.0)
    far = max(pairs, key=lambda p: links.latency_ms[p[0]][p[1]] or 0.0)
    return (
        f"slowest link: rank {_arrow(slow, links)} at {links.bandwidth_mb_per_s[slow[0]][slow[1]]:.1f} MB/s "
        f"(fastest {links.bandwidth_mb_per_s[fast[0]][fast[1]]:.1f}); "
        f"longest latency: rank {_arrow(far, links)} at {links.latency_ms[far[0]][far[1]]:.3f} ms; "
        "a sync with every island waits for the slowest"
    )


def _arrow(pair: tuple[int, int], links: Links) -> str:
    names = [links.labels[rank].partition("|")[0] for rank in pair]
    return f"{pair[0]} -> {pair[1]} ({names[0]} -> {names[1]})"
