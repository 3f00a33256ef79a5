"""The cells of benchmarks/headline.py: which methods, over which links, for how many inner steps.

How the slow link stands for 107B parameters over 1 Gbit/s (DiLoCoX, arXiv 2506.21263): what decides the speed-up is
the ratio of the time that one DDP step's gradients take on the link to the time that the step itself takes. Two
islands send 4 bytes per parameter and step each way, so the ratio is 32 P / (rate * step_s). P = 115,776 in fp32 at
0.75 Mbit/s are 4.94 s beside a step of about 12.2 ms here: about 400. The same ratio at P = 107e9 and 1 Gbit/s:
3,424 s of transfer beside a step of 8.5 s (or half of both in bf16). DiLoCoX's 357x needs a ratio of at least 356,
since no method is faster than one without any network cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.headline_recipes import EVERY, STEPS
from benchmarks.peers.session import Window

RECIPES = "benchmarks/headline_recipes.py"
BASE = "DDP (torch)"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the comparison."""

    name: str
    worker: str
    """Module under benchmarks/peers."""
    recipe: str = "ddp"
    """Function of headline_recipes: what is trained, and lowcomm's sync."""
    option: str | None = None
    every: int = 1
    """Inner steps between syncs (H)."""
    overlaps: bool = False
    foreign: bool = False
    """Needs the packages of --peers."""
    ours: bool = False

    @property
    def key(self) -> str:
        """For file names."""
        return "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")


METHODS = (
    Method(name=BASE, worker="torch_ddp"),
    Method(name="DDP, bf16 hook", worker="torch_ddp", option="bf16"),
    Method(name="DDP, PowerSGD hook", worker="torch_ddp", option="powersgd"),
    Method(name="accelerate LocalSGD", worker="accelerate_local_sgd", recipe="diloco", every=EVERY, foreign=True),
    Method(name="torchft DiLoCo", worker="torchft_diloco", recipe="diloco", every=EVERY, foreign=True),
    Method(name="DDP (torch), Muon inside", worker="torch_ddp", recipe="ddp_muon"),
    Method(name="lowcomm DDP", worker="lowcomm_trainer", ours=True),
    Method(name="lowcomm DiLoCo fp32", worker="lowcomm_trainer", recipe="diloco", every=EVERY, ours=True),
    Method(
        name="lowcomm int4 streaming, overlap",
        worker="lowcomm_trainer",
        recipe="int4_streaming",
        every=EVERY,
        overlaps=True,
        ours=True,
    ),
    Method(
        name="lowcomm SparseLoCo, overlap",
        worker="lowcomm_trainer",
        recipe="sparseloco_overlap",
        every=EVERY // 2,
        overlaps=True,
        ours=True,
    ),
    Method(
        name="lowcomm sparse kept, overlap",
        worker="lowcomm_trainer",
        recipe="sparse_kept_overlap",
        every=EVERY // 2,
        overlaps=True,
        ours=True,
    ),
    Method(
        name="lowcomm two-bit, one-step delay",
        worker="lowcomm_trainer",
        recipe="two_bit_delayed",
        every=EVERY,
        overlaps=True,
        ours=True,
    ),
    Method(name="lowcomm MuLoCo 2-bit", worker="lowcomm_trainer", recipe="muloco_two_bit", every=EVERY, ours=True),
    Method(
        name="lowcomm MuLoCo 2-bit streaming, overlap",
        worker="lowcomm_trainer",
        recipe="muloco_streaming",
        every=EVERY,
        overlaps=True,
        ours=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A link between the islands and the host-to-host packets on it."""

    name: str
    rate_mbit: float
    rtt_ms: float
    mtu_bytes: int
    """Small where the rate is low, so that no packet holds the line for long: the router stores and forwards."""
    target: str
    """Of DDP's utilisation without delay."""

    @property
    def slow(self) -> bool:
        """Whether a DDP step takes seconds."""
        return self.rate_mbit < 5


@dataclass(frozen=True, kw_only=True)
class Size:
    """What is trained, and links whose transfers take as many of its steps as those of the other sizes."""

    preset: str
    parameters: int
    """With bytes as tokens."""
    steps: int
    """Inner steps of a whole run."""
    rates_mbit: tuple[float, float, float]
    """Of the fast, the middle and the slow link."""
    slow_steps: tuple[int, int] = (1, 3)
    """DDP's steps on the slow link before and in the window, where each takes many seconds."""

    @property
    def lines(self) -> tuple[Line, ...]:
        """Every link, without and with a round trip."""
        kinds = (("fast", 65000, "near 50 %"), ("middle", 9000, "near 10 %"), ("slow", 1500, "under 1 %"))
        return tuple(
            Line(name=f"{name}-{rtt:g}ms", rate_mbit=rate, rtt_ms=rtt, mtu_bytes=mtu, target=target)
            for (name, mtu, target), rate in zip(kinds, self.rates_mbit, strict=True)
            for rtt in (0.0, 50.0)
        )


NANO = Size(preset="nano", parameters=115_776, steps=STEPS, rates_mbit=(1000.0, 35.0, 0.75), slow_steps=(3, 6))
TINY = Size(preset="tiny", parameters=824_960, steps=STEPS, rates_mbit=(1000.0, 60.0, 1.3))
THREE_M = Size(preset="3m", parameters=2_706_624, steps=1280, rates_mbit=(1000.0, 55.0, 1.2))
SIZES = {size.preset: size for size in (NANO, TINY, THREE_M)}
QUEUE_MS = 10_000.0
"""Of the router: bursts wait for the line and are not dropped, which is kind to methods that send much."""


def window(method: Method, line: Line, size: Size = NANO) -> Window:
    """How long a cell is measured: whole rounds, or some tens of steps (a few where each takes seconds)."""
    if method.every == 1:
        warmup_steps, steps = size.slow_steps if line.slow else (4, 48)
    else:
        rounds, warmup_rounds = (5 if method.overlaps else 4), (2 if method.overlaps else 1)
        warmup_steps, steps = warmup_rounds * EVERY, rounds * EVERY
    return Window(
        link=line.name,
        rate_mbit=line.rate_mbit,
        delay_ms=line.rtt_ms / 2,
        mtu_bytes=line.mtu_bytes,
        queue_ms=QUEUE_MS,
        warmup_steps=warmup_steps,
        steps=steps,
        unit_steps=method.every,
    )
