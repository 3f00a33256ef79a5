"""What the islands of all methods share: the plan, the model and data of lowcomm, timed windows, counted bytes.

A worker is `python -m benchmarks.peers.NAME PLAN.json OUT_DIR`, one per host, with torchrun's environment variables.
A window is: plain steps without any sync (timed), the link set, warm-up steps of the method, its steps (timed), and
plain steps again. So both times are of the same processes, side by side, a few seconds apart.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.distributed import TCPStore

from benchmarks.netlab.lab import Link, reshape
from benchmarks.peers.interface import PeakRate, interface_bytes
from lowcomm.config import RunConfig
from lowcomm.data import Data, Shard
from lowcomm.island import PlainIsland
from lowcomm.model import token_losses
from lowcomm.recipe import load
from lowcomm.run.assembly import World, build_models, preflight
from lowcomm.run.run_dir import write_json

PORT_STEP = 1
"""The session's own store listens this far above MASTER_PORT."""
PLAIN_BLOCKS, PLAIN_STEPS = 9, 16
"""Plain steps before and after each window: the median of blocks counts, so that one interruption does not."""
STEADY = 1.15
"""Plain steps before and after a window that differ by more than this factor: the machine changed its pace within."""
SETTLE_S = 0.3
"""The router looks for a new link every 0.05 s."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """One link and how long it is measured, in inner steps."""

    link: str
    rate_mbit: float | None
    delay_ms: float
    mtu_bytes: int
    queue_ms: float
    warmup_steps: int
    steps: int
    unit_steps: int
    """Steps that are timed as one: a round."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a worker does: `windows` to time, or with `train_steps` a whole run whose weights are evaluated."""

    recipe: str
    """FILE.py:FUNCTION of the configuration."""
    seed: int
    option: str | None = None
    """The method's variant, such as a hook of DDP."""
    windows: tuple[Window, ...] = ()
    preset: str | None = None
    """Of the model; None: the recipe's."""
    train_steps: int | None = None
    eval_every: int | None = None
    """Steps between evaluations within the whole run, which are its curve; None: only at the end."""
    control: str | None = None
    """The router's settings; None: an unshaped network."""

    @classmethod
    def read(cls, path: Path) -> Plan:
        """From the file that the launcher wrote."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**raw, "windows": tuple(Window(**w) for w in raw["windows"])})

    def write(self, path: Path) -> None:
        """For `read`."""
        write_json(path, asdict(self))


class Method(Protocol):
    """One island of a method in training."""

    model: nn.Module
    """What it trains; right after a sync also what all islands agree on."""

    def step(self) -> None:
        """One inner step, with whatever the method does after it."""
        ...

    def settle(self) -> None:
        """Until nothing of the method is on its way."""
        ...

    def own_sent_bytes(self) -> int | None:
        """Bytes that it says it has sent; None if it does not count."""
        ...

    def finish(self) -> nn.Module:
        """End training; the model whose weights count."""
        ...


class Session:
    """This island: its configuration, data and a store to meet the other islands at."""

    def __init__(self, plan: Plan, out_dir: Path) -> None:
        torch.set_num_threads(1)
        self.plan, self.out_dir = plan, out_dir
        self.world = World.from_environment()
        recipe = load(plan.recipe)
        model = replace(recipe.model, preset=cast("Any", plan.preset or recipe.model.preset))
        steps = plan.train_steps or recipe.steps
        config = replace(recipe, seed=plan.seed, run_dir=out_dir / "run", model=model, steps=steps)
        self.config: RunConfig
        self.data: Data
        self.config, self.data = preflight(config, self.world)
        self.address, self.port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        first = self.world.rank == 0
        wait = timedelta(seconds=600)
        self.store = TCPStore(self.address, self.port + PORT_STEP, self.world.size, first, wait)
        self.meetings = 0
        self.twin, self.twin_shard, self.twin_steps = self.island(self.model()), self.shard(), 0

    def model(self) -> nn.Module:
        """The recipe's model with the seed's weights."""
        return build_models(self.config, self.data, 1, torch.device("cpu"))[0]

    def island(self, model: nn.Module, forward: nn.Module | None = None) -> PlainIsland:
        """lowcomm's inner loop over `model`; `forward` is what is called, such as a DDP wrapper."""
        seed = self.config.seed * 1_000_003 + self.world.rank
        config = self.config.inner
        return PlainIsland(model, config, steps=self.config.steps, seed=seed, losses=token_losses, forward=forward)

    def shard(self) -> Shard:
        """This island's training text, at its beginning."""
        return self.data.shard(self.world.rank)

    def meet(self, value: float = 0.0) -> list[float]:
        """Wait for the other islands; everybody's value, in island order."""
        self.meetings += 1
        self.store.set(f"{self.meetings}/{self.world.rank}", repr(value))
        keys = [f"{self.meetings}/{k}" for k in range(self.world.size)]
        self.store.wait(keys)
        return [float(self.store.get(key)) for key in keys]

    def leave(self) -> None:
        """The last word: island 0, whose store it is, stays until all have said it."""
        self.store.set(f"bye/{self.world.rank}", "")
        if self.world.rank == 0:
            self.store.wait([f"bye/{k}" for k in range(self.world.size)])

    def plain_step_s(self) -> tuple[float, float]:
        """Seconds of an inner step of a model that is never synced, all islands at work: the slowest one's median.

        The second number is without the seconds in which the thread had no core.
        """
        self.meet()
        blocks = [timed_steps(self.plain_step, PLAIN_STEPS) for _ in range(PLAIN_BLOCKS)]
        wall_s = statistics.median(w for w, _ in blocks)
        return max(self.meet(wall_s)), max(self.meet(statistics.median(w - q for w, q in blocks)))

    def plain_step(self) -> None:
        """One step of the twin."""
        self.twin.backward([self.twin_shard.next_batch()])
        self.twin.update(self.twin_steps)
        self.twin_steps += 1

    def set_link(self, window: Window) -> None:
        """Give the line its rate and delay; the largest packet follows the rate, see headline.LINKS."""
        assert self.plan.control is not None
        subprocess.run(["ip", "link", "set", "tun0", "mtu", str(window.mtu_bytes)], check=True)
        if self.world.rank == 0:
            link = Link(rate_mbit=window.rate_mbit, delay_ms=window.delay_ms, queue_ms=window.queue_ms)
            reshape(Path(self.plan.control), link)
        time.sleep(SETTLE_S)
        self.meet()

    def measure(self, method: Method, window: Window) -> None:
        """One window; writes OUT_DIR/LINK.rankN.json if none is there that was measured on a steadier machine."""
        method.settle()
        before_s = self.plain_step_s()
        self.set_link(window)
        for _ in range(window.warmup_steps):
            method.step()
        own, carried = method.own_sent_bytes(), interface_bytes()
        with PeakRate() as peak:
            units = [timed_steps(method.step, window.unit_steps) for _ in range(window.steps // window.unit_steps)]
        own_after, carried_after = method.own_sent_bytes(), interface_bytes()
        method.settle()
        after_s = self.plain_step_s()
        row = {
            **asdict(window),
            "unit_step_s": [wall_s for wall_s, _ in units],
            "unit_wait_s": [wait_s for _, wait_s in units],
            "plain_step_s": [before_s[0], after_s[0]],
            "plain_net_s": [before_s[1], after_s[1]],
            "sent_bytes": carried_after[0] - carried[0],
            "received_bytes": carried_after[1] - carried[1],
            "peak_sent_bytes_per_s": peak.sent_bytes_per_s,
            "own_sent_bytes": None if own is None or own_after is None else own_after - own,
        }
        path = self.out_dir / f"{window.link}.rank{self.world.rank}.json"
        if is_steadier(row, path):
            write_json(path, row)

    def train(self, method: Method, steps: int) -> None:
        """All steps, then the validation loss; island 0 writes OUT_DIR/quality.json."""
        self.meet()
        every, curve = self.plan.eval_every, list[dict[str, float]]()
        start = time.perf_counter()
        for step in range(1, steps + 1):
            method.step()
            if every is not None and step % every == 0 and self.world.rank == 0 and step < steps:
                curve.append({"step": step, "val_bpb": self.bits_per_byte(method.model)})
        model = method.finish()
        wall_s = time.perf_counter() - start
        if self.world.rank == 0:
            row = {"val_bpb": self.bits_per_byte(model), "steps": steps, "wall_s": wall_s, "curve": curve}
            write_json(self.out_dir / "quality.json", row)

    @torch.no_grad()
    def bits_per_byte(self, model: nn.Module) -> float:
        """Of the validation text, as in a lowcomm run's summary."""
        model.eval()
        nats, text_bytes = 0.0, 0
        for inputs, targets in self.data.validation_batches():
            nats += float(token_losses(model, inputs, targets).double().sum())
            text_bytes += int(self.data.token_bytes[targets].sum())
        model.train()
        return nats / math.log(2) / text_bytes


def pace_change(row: dict[str, Any]) -> float:
    """By what factor plain steps before and after a window differ, 1 or more; the same on all islands."""
    before_s, after_s = row["plain_net_s"]
    return max(before_s, after_s) / min(before_s, after_s)


def is_steadier(row: dict[str, Any], path: Path) -> bool:
    """Whether the machine kept its pace better than in the cell that is there."""
    return not path.exists() or pace_change(row) < pace_change(json.loads(path.read_text(encoding="utf-8")))


def timed_steps(step: Callable[[], None], count: int) -> tuple[float, float]:
    """Seconds of a step, mean of `count`, and those of it in which this thread was ready to run and had no core."""
    waited_s, start = run_queue_s(), time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count, (run_queue_s() - waited_s) / count


def run_queue_s() -> float:
    """Seconds so far that this thread was ready to run and had no core (Linux)."""
    return int(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[1]) / 1e9


def run(build: Callable[[Session], Method]) -> None:
    """What a worker's main does."""
    session = Session(Plan.read(Path(sys.argv[1])), Path(sys.argv[2]))
    method = build(session)
    for window in session.plan.windows:
        session.measure(method, window)
    if session.plan.train_steps is not None:
        session.train(method, session.plan.train_steps)
    session.leave()
    sys.stdout.flush()
    os._exit(0)  # groups and servers of all kinds; leaving them in good order is not measured
