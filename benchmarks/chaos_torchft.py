"""torchft's DiLoCo under the faults that it can be given: three replicas and a lighthouse; who dies starts again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT
from lowcomm.private_files import make_directory
from lowcomm.run.run_dir import git_commit, write_json

SYSTEM = "torchft 0.2 DiLoCo"
REPLICAS, ROUNDS, EVERY, ROUND, FOR_S = 3, 34, 2, 8, 3.0
PAUSE_S = 0.5
"""After each inner step, so that whoever is started again, which takes it seconds, finds the others at work."""
LIMIT_S, RESTART_S, POLL_S = 150.0, 0.3, 0.02
CASES = (
    ("none", "step"), ("kill", "step"), ("nan", "step"), ("stop", "step"), ("down", "step"), ("kill", "upload"),
    ("term", "step"), ("blow-up", "step"), ("stop", "upload"),
)  # fmt: skip
"""down: the lighthouse is killed, and started again after FOR_S."""


@dataclass
class Room:
    """Processes of one case."""

    place: Path
    peers: Path
    fault: str
    phase: str
    port: int = 0
    processes: list[tuple[int, subprocess.Popen[bytes]]] = field(default_factory=list)
    later: list[tuple[float, Any]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Of its processes: this project, and the directory with torchft."""
        paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(self.peers.resolve())])
        retries = {"TORCHFT_QUORUM_RETRIES": "5"}
        return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **retries}

    def lighthouse(self) -> None:
        """Start it, on the same port every time."""
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
        code = (
            "import time; from torchft.coordination import LighthouseServer\n"
            f"held = LighthouseServer(bind='127.0.0.1:{self.port}', min_replicas=1, join_timeout_ms=1000)\n"
            "time.sleep(1e6)"
        )
        self.start(-1, [sys.executable, "-c", code])

    def replica(self, number: int, *, faulty: bool) -> None:
        """Start one."""
        round_ = ROUND if faulty and number == 1 and self.fault not in ("none", "down") else None
        plan = self.place / f"plan-{number}-{len(self.processes)}.json"
        write_json(plan, {
            "replica": number, "replicas": REPLICAS, "lighthouse": f"http://127.0.0.1:{self.port}", "rounds": ROUNDS,
            "every": EVERY, "fault": self.fault, "phase": self.phase, "round": round_, "out": str(self.record(number)),
            "pause_s": PAUSE_S,
        })  # fmt: skip
        self.start(number, [sys.executable, "-m", "benchmarks.peers.torchft_chaos", str(plan)])

    def record(self, number: int) -> Path:
        """What a replica writes down."""
        return self.place / f"{number}.record"

    def lines(self, number: int) -> list[dict[str, Any]]:
        """What it has written down."""
        path = self.record(number)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def start(self, number: int, command: list[str]) -> None:
        """A process; the lighthouse is -1."""
        with (self.place / f"{number}.log").open("ab") as log:
            child = subprocess.Popen(command, cwd=ROOT, env=self.environment(), stdout=log, stderr=log)
        self.processes.append((number, child))

    def now(self, number: int) -> subprocess.Popen[bytes]:
        """The newest process of a replica."""
        return [child for n, child in self.processes if n == number][-1]

    def end(self) -> None:
        """Kill what is left."""
        for _, child in self.processes:
            if child.poll() is None:
                child.kill()
            child.wait()


def torchft_rows(peers: str | None, work: Path) -> list[dict[str, Any]]:
    """Rows of all cases, those that are there and new ones; without torchft those that are here, or in the result."""
    path = RESULTS / "chaos.json"
    known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    told = {(row["fault"], row["phase"]): row for row in known if row["system"] == SYSTEM}
    rows, calm = list[dict[str, Any]](), None
    for fault, phase in CASES:
        path = work / f"{fault}-{phase}" / "row.json"
        if not path.exists() and peers is None:
            rows += [told[fault, phase]] if (fault, phase) in told else []
            continue
        if not path.exists():
            assert peers is not None
            write_json(path, _row(_case(path.parent, Path(peers), fault, phase), calm))
            print(path.read_text(encoding="utf-8"), flush=True)
        row = json.loads(path.read_text(encoding="utf-8"))
        calm = row if fault == "none" else calm
        rows += [] if fault == "none" else [row]
    return rows


def _case(place: Path, peers: Path, fault: str, phase: str) -> Room:
    """Run one to its end, or to the limit."""
    make_directory(place)
    for old in place.glob("*.record"):
        old.unlink()
    room = Room(place, peers, fault, phase)
    room.lighthouse()
    for number in range(REPLICAS):
        room.replica(number, faulty=True)
    ends, seen = time.monotonic() + LIMIT_S, False
    while time.monotonic() < ends and any(room.now(k).poll() is None for k in range(REPLICAS)):
        seen = seen or _react(room)
        victim = room.now(1)
        if victim.poll() not in (None, 0) and not room.later and fault in ("kill", "term") and seen:
            room.later.append((time.monotonic() + RESTART_S, lambda: room.replica(1, faulty=False)))
        for item in [one for one in room.later if one[0] <= time.monotonic()]:
            room.later.remove(item)
            item[1]()
        time.sleep(POLL_S)
    room.end()
    return room


def _react(room: Room) -> bool:
    """Whether the fault has come; what is to be done from outside then."""
    if room.fault == "down":
        if not any(line.get("round", 0) >= ROUND for line in room.lines(0)):
            return False
        write_json(room.place / "event.json", {"at": time.monotonic()})
        room.now(-1).kill()
        room.later.append((time.monotonic() + FOR_S, room.lighthouse))
        return True
    came = [line for line in room.lines(1) if line["event"] == "fault"]
    if not came:
        return False
    write_json(room.place / "event.json", came[0])
    if room.fault == "stop":
        victim = room.now(1)
        room.later.append((came[0]["at"] + FOR_S, lambda: victim.send_signal(signal.SIGCONT)))
    return True


def _row(room: Room, calm: dict[str, Any] | None) -> dict[str, Any]:
    """What came of it, with the names of the chaos table."""
    records = [room.lines(number) for number in range(REPLICAS)]
    ends = [line for found in records for line in found if line["event"] == "end"]
    event = room.place / "event.json"
    at = json.loads(event.read_text(encoding="utf-8"))["at"] if event.exists() else None
    equal = len(ends) == REPLICAS and len({line["weights"] for line in ends}) == 1
    losses = [line["val_loss"] for line in ends]
    finite = bool(losses) and all(loss is not None for loss in losses)
    usual = None if calm is None else calm["gap_s"]
    gaps = [gap for k in (0, 2) for gap in _gaps(records[k], at)]
    later = [x["at"] for x in records[1] if x["event"] == "round" and at is not None and x["at"] > at]
    back = min(later, default=None)
    change = None if calm is None or not finite else max(losses) / calm["val_loss"] - 1
    lived = equal and finite
    return {
        "fault": room.fault, "phase": room.phase, "system": SYSTEM, "islands": REPLICAS, "survived": lived,
        "replicas_equal": equal, "rounds_lost": 0, "final_loss_change": change,
        "val_loss": max(losses) if finite else None,
        "stall_s": max(0.0, max(gaps) - usual) if gaps and usual is not None else None,
        "recovery_s": None if at is None or back is None else back - at,
        "gap_s": statistics.median(_gaps(records[0], None)) if len(records[0]) > 3 else None, "commit": git_commit(),
        "exit_codes": [room.now(k).returncode for k in range(REPLICAS)],
        "why_not": None if lived else f"{len(ends)} of {REPLICAS} replicas ended, equal: {equal}, finite: {finite}",
    }  # fmt: skip


def _gaps(found: list[dict[str, Any]], at: float | None) -> list[float]:
    """Seconds between its rounds; at: of those that a fault then may have lengthened."""
    times = [line["at"] for line in found if line["event"] == "round"]
    pairs = list(itertools.pairwise(times))
    return [b - a for a, b in pairs if at is None or (b > at and a < at + FOR_S)]
