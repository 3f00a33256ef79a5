"""Members of a toy run as real processes, that die, freeze or send damaged objects at a named moment.

    python -m tests.support.store_crew URL MEMBERS_JSON RESULTS_FOLDER

forks a process for each member (one import for all of them) and waits until all have ended. A member is
`{"name", "at", "what"}`: at the n-th `before put deltas/ n` or `after get commits/ n` of its requests it does `what`:
"die" (SIGKILL; then another of its name starts), "freeze" (SIGSTOP, until the others have made three more versions),
"truncate" or "enlarge" (what it puts). Results: a file per process, with phase, digest and blocks.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowcomm.store import keys
from lowcomm.store.objects import Answer, Listed, Objects, StoreError
from lowcomm.store.open import open_objects
from lowcomm.store.rules import Policy
from lowcomm.store.start import read_run
from tests.support.store_toy import ToyIsland, toy_rules, toy_run

POLICY = Policy(islands=3, patience_s=0.5, expected_s=0.1, snapshot_every_s=0.3)
BLOCKS = 24
LIMIT_S = 60.0
"""After which a run that does not end has failed."""


class Eventful(Objects):
    """Passes requests on, and does `what` at the n-th that fits."""

    def __init__(self, inner: Objects, at: str | None, what: str) -> None:
        super().__init__()
        self.inner, self.where, self.what = inner, inner.where, what
        self.part_bytes = inner.part_bytes
        self.when, self.kind, self.prefix, number = at.split() if at else ("", "", "", "0")
        self.left = int(number)

    def put_new(self, key: str, data: bytes) -> Answer:
        if self._now("before", "put", key):
            if self.what in ("truncate", "enlarge"):
                data = data[: len(data) // 2] if self.what == "truncate" else data + bytes(1 << 20)
            else:
                self._act()
        answer = self.inner.put_new(key, data)
        if self._now("after", "put", key):
            self._act()
        return answer

    def get(self, key: str) -> bytes | None:
        return self._read(key, self.inner.get(key))

    def get_range(self, key: str, start: int, size: int) -> bytes | None:
        return self._read(key, self.inner.get_range(key, start, size))

    def list(self, prefix: str, after: str | None = None) -> list[Listed]:
        return self.inner.list(prefix, after)

    def delete(self, keys: Sequence[str]) -> None:
        self.inner.delete(keys)

    def _read(self, key: str, data: bytes | None) -> bytes | None:
        if data is not None and self._now("after", "get", key):
            self._act()
        return data

    def _now(self, when: str, kind: str, key: str) -> bool:
        if (when, kind) != (self.when, self.kind) or not key.startswith(self.prefix):
            return False
        self.left -= 1
        return self.left == 0

    def _act(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL if self.what == "die" else signal.SIGSTOP)


@dataclass
class Process:
    """A member that was started."""

    number: int
    plan: dict[str, Any]
    pid: int
    frozen_at: int | None = None
    """Newest commit when it was seen frozen."""


def live(url: str, number: int, plan: dict[str, Any], results: Path) -> None:
    """One member, to the end of the run."""
    torch.set_num_threads(1)
    objects = Eventful(open_objects(url), plan.get("at"), plan.get("what", "die"))
    rules = toy_rules(BLOCKS, stale=6, keep=2)
    run = read_run(objects)
    assert run is not None
    rng = random.Random(number)
    member = ToyIsland(objects, run, rules, POLICY, time.monotonic, rng, plan["name"])
    whys, troubles = list[str](), list[str]()
    give_up = time.monotonic() + LIMIT_S
    while not member.left and time.monotonic() < give_up:
        try:
            member.step()
        except StoreError as error:
            troubles.append(error.cause.value)
            (results / "missed").touch()
            time.sleep(0.1)
        if member.island.why not in whys:
            whys.append(member.island.why)
        time.sleep(0.05)
    state = member.island.follower.state
    found = {"phase": member.island.phase.value, "whys": whys}
    if state is not None:
        trained = int((state.fragments[0].weights != 0).sum())
        found |= {"digest": state.digest, "trained": trained, "tokens": state.tokens_done, "version": state.version}
    (results / f"{number}.json").write_text(json.dumps({**found, "name": plan["name"], "troubles": troubles}))


def start(url: str, number: int, plan: dict[str, Any], results: Path) -> Process:
    """Fork a member."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            live(url, number, plan, results)
            code = 0
        finally:
            os._exit(code)
    return Process(number=number, plan=plan, pid=pid)


def main(url: str, plans: list[dict[str, Any]], results: Path) -> None:
    """Start them, start those who die again, let those who froze go on, and wait for all."""
    running = [start(url, number, plan, results) for number, plan in enumerate(plans)]
    started, folder = len(running), Path(url) / keys.COMMITS  # only a directory can wait for who is frozen
    while running:
        for process in list(running):
            pid, status = os.waitpid(process.pid, os.WNOHANG | os.WUNTRACED)
            made = len(list(folder.iterdir())) if folder.is_dir() else 0
            if pid and os.WIFSTOPPED(status):
                process.frozen_at = made
            elif pid:
                running.remove(process)
                if os.WIFSIGNALED(status):
                    running.append(start(url, started, {"name": process.plan["name"]}, results))
                    started += 1
            if process.frozen_at is not None and made >= process.frozen_at + 3:
                process.frozen_at = None
                os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.02)


def create(url: str) -> None:
    """The run that they take part in."""
    objects = open_objects(url, make=True)
    toy_run(objects, toy_rules(BLOCKS, stale=6, keep=2))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
