"""The network of a gossip run as its metrics tell of it: parts, spectral gap, how far apart islands were."""

from __future__ import annotations

from lowcomm.report.load import Run, number
from lowcomm.report.units import format_decimal


def network_tiles(run: Run) -> list[tuple[str, str]]:
    """(value, label); nothing of a run whose islands all hear each other."""

    def all_of(event: str, key: str) -> list[float]:
        return [value for e in run.of(event) if (value := number(e.get(key))) is not None]

    parts, gaps = all_of("sync", "components"), all_of("sync", "spectral_gap")
    if not parts or not gaps:
        return []
    tiles = [(f"{max(parts):.0f}", "connected parts of the network, at most")]
    tiles.append((format_decimal(min(gaps)), "spectral gap, at least"))
    tiles += [(f"{d:.3g}", "squared distance to the mean, last") for d in all_of("eval", "consensus_distance")[-1:]]
    sharp = all_of("eval", "average_direction_sharpness")[-1:]
    return tiles + [(f"{s:+.3g}", "nats per token of islands over their mean, last") for s in sharp]
