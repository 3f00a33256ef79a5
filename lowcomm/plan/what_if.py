"""Which link a data-centre-sized run needs: Streaming DiLoCo's table of Gbit/s for 95 % utilisation, anew.

Douillard et al., Streaming DiLoCo, arXiv 2501.18512, simulated 1B, 10B and 100B parameters:

    Gbit/s                             1B     10B    100B
    data-parallel                     222     268     391
    DiLoCo                             23      34      49
    streaming, overlapped, FP4        2.0     1.4     1.1

Here: one exchange is one model each way (a reduction in the fabric, as there, not our 2 (n - 1) / n), no latency, step
times of 0.1, 0.8 and 4.9 s for 24, 48 and 108 layers, H = 100, fragments of 3 layers.

    data-parallel   16 bits each step, hidden behind the backward pass (2/3 of the step)
    DiLoCo          16 bits each H steps, nothing hidden
    streaming       4 bits of one fragment each H / P steps, hidden behind tau = 2 steps

    needed = bits / (hidden + step time x steps between two exchanges x (1 / utilisation - 1))

Differences: the paper's simulator walks a graph of layers forward and backward, so it hides part of DiLoCo's exchange,
too (ours is above it by a fifth to a third), and its bandwidths are points of a grid; the paper advises tau up to 5
but at 100B fragments are 2.8 steps apart, so that tau is 2 at most; with tau = 5 the 1B figure would be 0.9. Between
the three sizes, step time and layers are interpolated in the logarithm; outside, they continue along the last piece.
Our own codecs send 4.06 bits where FP4 has 4, and our fp32 exchange twice 16: `lowcomm plan` counts these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowcomm.types import ConfigError, require

SIZES = (1e9, 10e9, 100e9)
STEP_S = (0.1, 0.8, 4.9)
LAYERS = (24.0, 48.0, 108.0)
PAPER_GBIT = {
    "data-parallel": (222.0, 268.0, 391.0),
    "DiLoCo": (23.0, 34.0, 49.0),
    "streaming + overlap + FP4": (2.0, 1.4, 1.1),
}
EVERY, DELAY, LAYERS_PER_FRAGMENT = 100, 2, 3
BACKWARD = 2 / 3
"""Share of a step that is the backward pass."""
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True, kw_only=True)
class Needed:
    """Gbit/s per island for one size, by method; the paper's where it has the size."""

    parameters: float
    gbit: dict[str, float]
    paper_gbit: dict[str, float]


def parse_sizes(text: str) -> list[float]:
    """`1B/10B/100B` -> parameters. Raises ConfigError."""
    found = []
    for part in text.replace(",", "/").split("/"):
        number, unit = (part[:-1], part[-1].upper()) if part[-1:].upper() in UNITS else (part, "")
        try:
            value = float(number) * UNITS.get(unit, 1.0)
        except ValueError:
            raise ConfigError(f"--what-if = {text!r} is not a list of sizes. Fix: --what-if 1B/10B/100B") from None
        require(1e6 <= value <= 1e14, "--what-if", part, "1M to 100T parameters", "--what-if 1B/10B/100B")
        found.append(value)
    return found


def needed(parameters: float, utilisation: float = 0.95) -> Needed:
    """The link that each method needs to keep `utilisation`."""
    step_s, layers = _between(STEP_S, parameters), _between(LAYERS, parameters)
    fragments = max(1, round(layers / LAYERS_PER_FRAGMENT))
    slack = 1 / utilisation - 1
    seconds = {
        "data-parallel": step_s * (BACKWARD + slack),
        "DiLoCo": EVERY * step_s * slack,
        "streaming + overlap + FP4": step_s * (DELAY + EVERY / fragments * slack),
    }
    bits = {"data-parallel": 16.0, "DiLoCo": 16.0, "streaming + overlap + FP4": 4 / fragments}
    known = {size: i for i, size in enumerate(SIZES)}.get(parameters)
    return Needed(
        parameters=parameters,
        gbit={name: bits[name] * parameters / seconds[name] / 1e9 for name in bits},
        paper_gbit={} if known is None else {name: row[known] for name, row in PAPER_GBIT.items()},
    )


def _between(values: tuple[float, ...], parameters: float) -> float:
    """Linear in the logarithms, along the first or last piece outside."""
    i = 1 if parameters < SIZES[1] else 2
    share = math.log(parameters / SIZES[i - 1]) / math.log(SIZES[i] / SIZES[i - 1])
    return values[i - 1] * (values[i] / values[i - 1]) ** share
