"""Faults in the middle of real runs, one at a time, and what becomes of each.

    python -m benchmarks.faults [--only WORD] [--again]

Nano on the standard library's sources, `lowcomm train` with a process per island. Each row: the fault, how the run
ended, what was noticed when, whether it can be gone on from, and what the final loss is beside that of an unbroken run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, write_result_and_table
from benchmarks.faults_acts import EVERY, ROUNDS
from benchmarks.faults_disk import fill, make_room, may_mount, small_disk
from benchmarks.faults_processes import Forked, prepare
from benchmarks.faults_table import table

WORK = Path("runs/bench/faults")
AT_ROUND = 5
"""In which a fault comes."""
LIMIT_S = 240.0
NOTICED = ("is dead", "is silent", "is gone", "was left out", "rests until", "error:", "stopped (", "warning:")
"""Words by which a line of a run says that something is wrong."""
Act = Callable[["Running"], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault."""

    fault: str
    islands: int
    inside: str | None = None
    """Prepared in the process: KIND ISLAND, as benchmarks/faults_acts.py has them."""
    act: Act | None = None
    """Done from outside when the round has come."""
    flags: tuple[str, ...] = ()
    recipe: str = "plain"
    small_disk: bool = False
    """Whether the run directory lies on a tmpfs of a few megabytes."""


@dataclass(kw_only=True)
class Running:
    """A run and what is known of it."""

    case: Case
    directory: Path
    process: Forked
    log: Path
    began_s: float | None = None
    """When the fault came (time.monotonic())."""
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def rank(self, number: int) -> int:
        """Process id of an island."""
        return int(Path(f"{self.log.parent / 'at'}-pid{number}").read_text(encoding="utf-8"))

    def send(self, numbers: Sequence[int], sent: int) -> None:
        """A signal to islands; -1 is the launcher."""
        self.began_s = time.monotonic()
        for number in numbers:
            os.kill(self.process.pid if number == -1 else self.rank(number), sent)


def signalled(sent: int, *numbers: int) -> Act:
    """Send a signal."""
    return lambda running: running.send(numbers, sent)


def filled(running: Running) -> None:
    """Something else takes what room is left on the run's disk."""
    running.began_s = time.monotonic()
    fill(running.directory.parent)


def frozen(seconds_s: float | None) -> Act:
    """Stop island 1; let it go on after some seconds, or never."""

    def act(running: Running) -> None:
        running.send([1], signal.SIGSTOP)
        if seconds_s is not None:
            pid = running.rank(1)
            running.later.append((time.monotonic() + seconds_s, lambda: os.kill(pid, signal.SIGCONT)))

    return act


def cases() -> list[Case]:
    """All faults, an unbroken run of as many islands first."""
    found = [Case(fault="none", islands=n) for n in (2, 3, 4)]
    for islands in (2, 4):
        for when in ("in_step", "at_start", "in_exchange", "after_apply"):
            found.append(Case(fault=f"kill -9 {when}", islands=islands, inside=f"kill_{when} 1"))
        found.append(Case(fault="kill -9 in_exchange, island 0", islands=islands, inside="kill_in_exchange 0"))
    found.append(Case(fault="SIGSTOP for 20 s", islands=2, act=frozen(20.0)))
    found.append(Case(fault="SIGSTOP for good", islands=4, act=frozen(None), flags=("--sync.timeout-s", "8")))
    longer = ("--sync.timeout-s", "8", "--steps", str(EVERY * ROUNDS * 10))
    found.append(Case(fault="SIGSTOP until left behind", islands=3, act=frozen(12.0), flags=longer))
    for kind in ("nan_weights", "nan_gradients", "nan_loss", "blow_up", "flip_contribution", "flip_result"):
        found.append(Case(fault=kind, islands=3, inside=f"{kind} 1"))
    for sent in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        found.append(Case(fault=f"{sent.name} to one", islands=2, act=signalled(sent, 1)))
        found.append(Case(fault=f"{sent.name} to all", islands=2, act=signalled(sent, 0, 1)))
        found.append(Case(fault=f"{sent.name} to the launcher", islands=2, act=signalled(sent, -1)))
    found.append(Case(fault="stream_breaks", islands=2, inside="stream_breaks 1"))
    for recipe in ("reduced", "shared", "gathered", "streamed"):
        found.append(Case(fault="kill -9 in_exchange", islands=3, inside="kill_in_exchange 1", recipe=recipe))
    all_of_them = ("--sync.quorum", "1.0")
    found.append(Case(fault="kill -9 in_exchange", islands=2, inside="kill_in_exchange 1", flags=all_of_them))
    found.append(Case(fault="unequal_batches", islands=3, inside="unequal_batches 1"))
    found.append(Case(fault="none", islands=2, recipe="averaged"))
    found.append(Case(fault="unequal_batches", islands=2, inside="unequal_batches 1", recipe="averaged"))
    found.append(Case(fault="ENOSPC in a checkpoint", islands=2, inside="disk_full 0"))
    if may_mount():
        found.append(Case(fault="disk full", islands=2, act=filled, small_disk=True))
    return found


def place_of(number: int) -> Path:
    """Where a case's files are."""
    return (WORK / f"{number:02d}").absolute()


def run(case: Case, number: int) -> Running:
    """Run it to its end."""
    directory = place_of(number)
    at = directory / "at"
    environment = {"FAULT": f"{case.inside} {AT_ROUND}" if case.inside else "none 0 0", "FAULT_AT": str(at)}
    log, place = directory / "log", directory / ("disk/run" if case.small_disk else "run")
    running = Running(
        case=case, directory=place, log=log, process=_start(case, place, log, environment, ()),
    )  # fmt: skip
    noticed: float | None = None
    ends = time.monotonic() + LIMIT_S
    while running.process.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)
        if running.began_s is None and at.exists() and (text := at.read_text(encoding="utf-8")):
            running.began_s = float(text)
        if running.began_s is None and case.act is not None and _rounds(running.directory) >= AT_ROUND:
            case.act(running)
        if running.began_s is not None and noticed is None and _notices(running):
            noticed = time.monotonic()
        for item in [i for i in running.later if i[0] <= time.monotonic()]:
            running.later.remove(item)
            item[1]()
    if running.process.poll() is None:
        running.process.kill()
    running.process.wait()
    if running.began_s is not None and noticed is None and _notices(running):
        noticed = time.monotonic()
    _NOTICED[id(running)] = None if noticed is None or running.began_s is None else max(0.0, noticed - running.began_s)
    return running


_NOTICED: dict[int, float | None] = {}


def _start(case: Case, directory: Path, log: Path, more: dict[str, str], flags: Sequence[str]) -> Forked:
    recipe = f"{ROOT / 'benchmarks' / 'faults_recipe.py'}:{case.recipe}"
    command = ["lowcomm.cli", "train", recipe, "--islands", str(case.islands), "--run-dir", str(directory)]
    return Forked([*command, *case.flags, *flags], {**os.environ, **more, "FAULT_LOG": str(log)})


def _metrics(directory: Path) -> list[dict[str, Any]]:
    try:
        lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _rounds(directory: Path) -> int:
    return max((m["round"] for m in _metrics(directory)), default=0)


def _notices(running: Running) -> bool:
    said = running.log.read_text(encoding="utf-8", errors="replace")
    said += " ".join(m["note"] for m in _metrics(running.directory) if m.get("note"))
    return any(word in said for word in NOTICED)


def summary(directory: Path) -> dict[str, Any]:
    """summary.json, or nothing."""
    try:
        return json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def row(case: Case, number: int, unbroken: dict[tuple[int, str], float]) -> dict[str, Any]:
    """Run a case in an empty place, and go on from what it leaves if it stopped."""
    place = place_of(number)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with small_disk(place / "disk") if case.small_disk else nullcontext():
        return _row(case, number, unbroken)


def _row(case: Case, number: int, unbroken: dict[tuple[int, str], float]) -> dict[str, Any]:
    running = run(case, number)
    first = summary(running.directory)
    code, status = running.process.returncode, first.get("status", "none")
    resumable: bool | None = None
    rounds_lost = 0
    if code != 0:
        before = _rounds(running.directory)
        make_room(running.directory.parent)
        again = _start(
            case,
            running.directory,
            running.log,
            {"FAULT": "none 0 0", "FAULT_AT": f"{running.log}-again"},
            ("--resume", "auto"),
        )
        resumable = again.wait() == 0
        resumed = [m["step"] for m in _metrics(running.directory) if "resumed from" in str(m.get("note"))]
        rounds_lost = max(0, before - resumed[-1] // EVERY) if resumed else before
    last = summary(running.directory)
    bpb = last.get("val_bpb")
    base = unbroken.get((case.islands, case.recipe))
    same_length = "--steps" not in case.flags
    noticed = _NOTICED[id(running)]
    return {
        "fault": case.fault, "exchange": case.recipe, "islands": case.islands, "outcome": status, "exit_code": code,
        "noticed_s": None if noticed is None else round(noticed, 2), "rounds_lost": rounds_lost,
        "lost": first.get("lost", {}), "resumable": resumable,
        "final_val_bpb_change": round(bpb - base, 4) if bpb and base and same_length and case.fault != "none" else None,
        "val_bpb": bpb, "flags": " ".join(case.flags),
    }  # fmt: skip


def main() -> None:
    """Run all cases, or those with a word in their name, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=None, help="only faults with this in their name; nothing is written")
    parser.add_argument("--again", action="store_true", help="also what an earlier call has run to its end")
    options = parser.parse_args()
    prepare()
    unbroken: dict[tuple[int, str], float] = {}
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases()):
        if options.only is not None and options.only not in case.fault:
            continue
        known = WORK / f"{number:02d}" / "row.json"
        start = time.monotonic()
        if options.again or not known.exists():
            found = row(case, number, unbroken)
            known.write_text(json.dumps(found), encoding="utf-8")
            print(f"{time.monotonic() - start:5.0f} s  {found}", flush=True)
        rows.append(json.loads(known.read_text(encoding="utf-8")))
        if case.fault == "none":
            unbroken[(case.islands, case.recipe)] = rows[-1]["val_bpb"]
    if options.only is None:
        write_result_and_table("faults", "python -m benchmarks.faults", rows, table)


if __name__ == "__main__":
    main()
