"""All runs of a plan: first one without faults, which says what is usual, then one for each of its groups of faults."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowcomm.chaos.disk import SmallDisk
from lowcomm.chaos.oracle import Finding, judge
from lowcomm.chaos.plan import Fault, Plan
from lowcomm.chaos.rows import rows_of, usual_gap_s
from lowcomm.chaos.running import Outcome, Running
from lowcomm.config import RunConfig
from lowcomm.private_files import make_directory
from lowcomm.storerun.blocks import BlockSizes
from lowcomm.storerun.plan import choice_of, shares_data, with_store
from lowcomm.types import LowcommError

FIRST_STILL_S = 180.0
"""After which a run without faults hangs, of which nothing is known yet."""
LEAST_STILL_S, GAPS = 30.0, 20
"""A run hangs after so many usual times between commits and four times the patience, but not before."""
Say = Callable[[str], None]


@dataclass(kw_only=True)
class Calm:
    """What is usual without faults."""

    val_loss: float
    gap_s: float
    """Between commits."""
    cpu_s: float
    """Of all processes."""


@dataclass(kw_only=True)
class Result:
    """What came of a run."""

    rows: list[dict[str, Any]]
    finding: Finding
    wall_s: float
    cpu_s: float


@dataclass(kw_only=True)
class Campaign:
    """config: of a store run with its number of islands. store: address below which the runs' stores lie."""

    config: RunConfig
    plan: Plan
    directory: Path
    store: str | None = None
    """None: directories beside what islands write, on a small disk of their own where one can be mounted."""
    say: Say = print
    calm: Calm | None = None
    results: list[Result] = field(default_factory=list)

    def quiet(self) -> Calm:
        """The run without faults. Raises LowcommError if it fails."""
        self.say("calm: a run without faults, for its loss and its pace")
        outcome = self._run("calm", (), FIRST_STILL_S)
        finding = judge(outcome, (), self._blocks(), None)
        if finding.failures or finding.val_loss is None:
            raise LowcommError(f"chaos: the run without faults fails: {'; '.join(finding.failures)}")
        self.calm = Calm(val_loss=finding.val_loss, gap_s=usual_gap_s(outcome), cpu_s=_cpu_s(outcome))
        return self.calm

    def go(self, number: int) -> Result:
        """The run of this number, from 0."""
        calm = self.calm or self.quiet()
        faults = tuple(one for one in self.plan.faults if one.run == number)
        named = ", ".join(f"{one.fault} in {one.phase}" for one in faults)
        self.say(f"run {number}: {named}")
        still_s = max(LEAST_STILL_S, GAPS * calm.gap_s + 4 * choice_of(self._made("")).patience_s)
        outcome = self._run(f"run-{number}", faults, still_s)
        finding = judge(outcome, faults, self._blocks(), calm.val_loss)
        where = "bucket" if self.store is not None and "://" in self.store else "directory"
        rows = rows_of(outcome, faults, finding, calm.gap_s, f"store ({where})")
        self.results.append(Result(rows=rows, finding=finding, wall_s=outcome.wall_s, cpu_s=_cpu_s(outcome)))
        for line in finding.failures:
            self.say(f"run {number}: {line}")
        return self.results[-1]

    def _run(self, name: str, faults: tuple[Fault, ...], still_s: float) -> Outcome:
        directory = self.directory / name
        if directory.exists():  # what an earlier one left, whose faults have come
            shutil.rmtree(directory)
        make_directory(directory)
        disk = None
        if self.store is None and any(one.fault == "full" for one in faults):
            disk = SmallDisk(directory / "disk")
            if (why := disk.mount()) is not None:
                self.say(f"run {name}: a full disk is injected, as none can be mounted here ({why})")
                disk = None
        inside = directory / "disk" if disk is not None else directory
        url = str(inside / "store") if self.store is None else f"{self.store.rstrip('/')}/{name}"
        try:
            return Running(self._made(url), url, directory, faults, self.plan.seed, disk).go(still_s)
        finally:
            if disk is not None:
                disk.close()

    def _made(self, url: str) -> RunConfig:
        return with_store(dataclasses.replace(self.config, run_dir=None), url)

    def _blocks(self) -> int | None:
        """Data blocks of a run; None: each island has text of its own."""
        made, islands = self._made(""), self.config.islands or 1
        return BlockSizes.of(made, choice_of(made), islands).count if shares_data(made) else None


def _cpu_s(outcome: Outcome) -> float:
    return outcome.cpu_s + sum(process.cpu_s for process in outcome.processes)
