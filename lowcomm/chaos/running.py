"""One run with its faults: starts islands, starts again whoever a fault has ended, and waits for the end or a hang."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowcomm.chaos import acts, member
from lowcomm.chaos.disk import SmallDisk
from lowcomm.chaos.inject import flipped
from lowcomm.chaos.kinds import FAILING, KINDS
from lowcomm.chaos.member import Scene
from lowcomm.chaos.plan import Fault
from lowcomm.chaos.processes import Process, fork
from lowcomm.config import RunConfig
from lowcomm.private_files import make_directory
from lowcomm.storerun.commands.start import island_here
from lowcomm.types import LowcommError

POLL_S = 0.02
RESTART_S = 0.3
"""From the end of an island's process to its next one."""
FADES_S = 2.0
"""In which a process may still end by what the store was."""
STACKS_S = 1.0
"""For writing stacks."""


@dataclass(kw_only=True)
class Outcome:
    """What came of a run."""

    processes: list[Process] = field(default_factory=list)
    events: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By number of the fault: when it came, to which island, at which version, in which process."""
    hung: str | None = None
    """Names of processes that did not go on, and where their stacks are; None: all ended."""
    verified: bool = False
    wall_s: float = 0.0
    cpu_s: float = 0.0
    """Of the processes that create and prove the run."""
    said: str = ""
    """What the proof of the history said."""


class Running:
    """A run that goes on. disk: the small one that its store lies on, to be filled; None: that is injected."""

    def __init__(
        self, config: RunConfig, url: str, directory: Path, faults: tuple[Fault, ...], seed: int, disk: SmallDisk | None
    ) -> None:
        self.config, self.url, self.directory, self.disk = config, url, directory, disk
        events = directory / "faults"
        make_directory(events)
        self.scene = Scene(faults=faults, events=events, seed=seed, real_full=disk is not None)
        self.outcome = Outcome()
        self.later: list[tuple[float, Callable[[], None]]] = []
        self._told: set[int] = set()
        """Processes whose end was looked at."""
        self._progress: tuple[Any, float] = (None, time.monotonic())

    def go(self, still_s: float) -> Outcome:
        """Run it to its end. still_s: seconds without any progress after which it hangs."""
        start = time.monotonic()
        self._wait(self._fork("create", member.create(self.config, self.url)), "it can't be created")
        for number in range(self.config.islands or 1):
            self._join(number)
        while not self._over():
            self._look()
            if self._still() > still_s + max((f.lasts_s for f in self.scene.faults), default=0.0):
                self._hang()
            time.sleep(POLL_S)
        self.later.clear()
        self._undo()
        self.outcome.wall_s = time.monotonic() - start
        proof = self._fork("verify", member.prove(self.url))
        self.outcome.verified = self._wait(proof, None) == 0
        self.outcome.said = proof.log.read_text(encoding="utf-8").strip()
        return self.outcome

    def _over(self) -> bool:
        """Whether nobody runs and nobody is to be started."""
        ended = all(process.pid in self._told for process in self.outcome.processes)
        done = any(process.code == 0 and process.island is not None for process in self.outcome.processes)
        return ended and (done or not self.later)

    def _look(self) -> None:
        for process in self.outcome.processes:
            if process.poll() is not None and process.pid not in self._told:
                self._told.add(process.pid)
                self._ended(process)
        for number in range(len(self.scene.faults)):
            place = self.scene.events / f"{number:03d}.json"
            if number not in self.outcome.events and place.exists():
                self.outcome.events[number] = json.loads(place.read_text(encoding="utf-8"))
                self._came(number)
        for item in [one for one in self.later if one[0] <= time.monotonic()]:
            self.later.remove(item)
            item[1]()

    def _ended(self, process: Process) -> None:
        """Start an island again that ended by what was done to it, unless the run is over."""
        came = [self.scene.faults[n] for n, e in self._events().items() if e["pid"] == process.pid]
        process.legal |= {code for one in came for code in KINDS[one.fault].ends}
        process.legal |= {2} if self._fails() else set()
        done = any(p.code == 0 and p.island is not None for p in self.outcome.processes)
        if process.code != 0 and process.code in process.legal and not done and process.island is not None:
            island = process.island
            self.later.append((time.monotonic() + RESTART_S, lambda: self._join(island)))

    def _fails(self) -> bool:
        """Whether requests fail by what was done to the store, or did so a moment ago."""
        for number, event in self._events().items():
            one = self.scene.faults[number]
            if one.fault in FAILING and time.monotonic() < event["at"] + one.for_s + FADES_S:
                return True
        return False

    def _events(self) -> dict[int, dict[str, Any]]:
        found = dict(self.outcome.events)
        for number in range(len(self.scene.faults)):
            place = self.scene.events / f"{number:03d}.json"
            if number not in found and place.exists():
                found[number] = json.loads(place.read_text(encoding="utf-8"))
        return found

    def _came(self, number: int) -> None:
        """A fault has come: what is to be done from outside, now and when it is over."""
        one, event = self.scene.faults[number], self.outcome.events[number]
        island, over = event["island"], event["at"] + one.for_s
        if one.fault == "stop":
            process = next(p for p in self.outcome.processes if p.pid == event["pid"])
            self.later.append((over, lambda: process.send(signal.SIGCONT)))
        elif one.fault == "down" and self._away().exists():
            self.later.append((over, self._undo))
        elif one.fault == "full" and self.disk is not None:
            self.disk.fill()
            self.later.append((over, self.disk.free))
        elif one.fault == "version":
            arguments = self._arguments(island, "another")
            process = self._fork("another", member.join_as_another_version(arguments))
            process.legal = {2}
            self.outcome.processes.append(process)
        elif one.fault == "twin":
            arguments = self._arguments(island, "twin")
            process = self._fork("twin", member.join(arguments, self.scene, None))
            self.outcome.processes.append(process)

    def _join(self, number: int) -> None:
        """Start an island."""
        name = f"island-{number}"
        work = member.join(self._arguments(number, name), self.scene, number)
        self.outcome.processes.append(self._fork(name, work, number))

    def _arguments(self, number: int, place: str) -> list[str]:
        """Of `lowcomm join`: the name is that of an island, the directory may be another one's."""
        config = self.config
        made = island_here(config, self.url, number, config.islands or 1, self.directory / "islands" / place)
        return [*made.arguments, *([] if "--quiet" in made.arguments else ["--quiet"])]

    def _fork(self, name: str, work: member.Work, island: int | None = None) -> Process:
        number = len(self.outcome.processes)
        place, directory = self.directory / f"{number:02d}-{name}", self.directory / "islands" / name
        return fork(name, work, place, directory=directory, island=island)

    def _wait(self, process: Process, why: str | None) -> int:
        while (code := process.poll()) is None:
            time.sleep(POLL_S)
        self.outcome.cpu_s += process.cpu_s
        if code and why is not None:
            raise LowcommError(f"chaos: {why}: {process.log.read_text(encoding='utf-8')[-500:]}")
        return code

    def _still(self) -> float:
        """Seconds since anything went on: a version, a fault, a start, an end."""
        sizes = [p.record.stat().st_size if p.record.exists() else 0 for p in self.outcome.processes]
        now = (sizes, [p.code for p in self.outcome.processes], len(self.outcome.events), len(self.later))
        if now != self._progress[0]:
            self._progress = (now, time.monotonic())
        return time.monotonic() - self._progress[1]

    def _hang(self) -> None:
        """Nothing goes on: let whoever hangs write its stacks, and end all."""
        left = [p for p in self.outcome.processes if p.poll() is None]
        for process in left:
            process.send(signal.SIGCONT)
            process.send(signal.SIGQUIT)
        time.sleep(STACKS_S)
        self.outcome.hung = ", ".join(f"{p.name} ({p.stacks})" for p in left) or "nobody runs"
        self.later.clear()
        for process in left:
            process.send(signal.SIGKILL)
            process.legal.add(-9)

    def _away(self) -> Path:
        return Path(self.url + acts.AWAY)

    def _undo(self) -> None:
        """Bring back what was moved away, and mend what was damaged: it is the run that is proved, not the damage."""
        away = self._away()
        if away.exists():
            away.rename(self.url)
        for note in self.scene.events.glob("*.damaged"):
            path = Path(note.read_text(encoding="utf-8"))
            note.unlink()
            if path.exists():
                path.write_bytes(flipped(path.read_bytes()))
