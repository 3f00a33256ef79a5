"""Members of a run as forked processes: one import for all of them, each free to die, freeze or be on another host.

What the benchmark knows of a run it reads from the folder that its store keeps, and from what members write down.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT
from lowcomm import cli
from lowcomm.config import RunConfig
from lowcomm.data import build_data
from lowcomm.store import keys
from lowcomm.store.commit import Commit
from lowcomm.store.open import open_objects
from lowcomm.storerun.create_run import create_run
from lowcomm.storerun.hands import Hands, Stepped
from lowcomm.storerun.plan import with_store
from lowcomm.types import PayloadError

WORK = ROOT / "runs" / "bench" / "store"
POLL_S = 0.05
CLONE_NEWNET = 0x40000000
Slow = Callable[[], None]
"""Called after each inner step of a member."""


@dataclass
class Island:
    """A process that was started."""

    name: str
    pid: int
    directory: Path
    code: int | None = None
    """Its exit code; negative: the signal that killed it."""

    def poll(self) -> int | None:
        """The exit code, as far as it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it wrote down of this kind."""
        path = self.directory / "metrics.jsonl"
        rows = [] if not path.exists() else [row for row in path.read_text(encoding="utf-8").splitlines() if row]
        found = []
        for row in rows:
            try:
                found.append(json.loads(row))
            except ValueError:
                continue  # it was killed while it wrote
        return [row for row in found if row["event"] == event]

    def summary(self) -> dict[str, Any]:
        """What it says at its end."""
        return json.loads((self.directory / "summary.json").read_text(encoding="utf-8"))


class Run:
    """A run in a store. folder: where the store keeps its objects as files."""

    def __init__(self, name: str, url: str | None = None, folder: Path | None = None) -> None:
        self.directory = WORK / name
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        self.url = str(self.directory / "run") if url is None else url
        self.folder = Path(self.url) if folder is None else folder
        self.islands: list[Island] = []
        self.host: int | None = None
        """Of a shaped network: where the run is created and verified; None: here."""

    def create(self, config: RunConfig) -> None:
        """Make it exist, in a process of its own."""

        def make() -> int:
            made = with_store(config, self.url)
            data = build_data(made.data, config.islands or 1, config.seed)
            create_run(open_objects(self.url, make=True), made, data, config.islands or 1)
            return 0

        island = self._fork("create", make, self.host)
        while island.poll() is None:
            time.sleep(POLL_S)
        if island.code:
            raise SystemExit((self.directory / "create.log").read_text(encoding="utf-8")[-3000:])

    def join(
        self,
        name: str,
        *,
        host: int | None = None,
        poison: int | None = None,
        slow_s: float = 0.0,
        flags: Sequence[str] = (),
    ) -> Island:
        """Start a member. poison: the inner step after which its weights are NaN; slow_s: a pause after each step.

        flags: more for its command.
        """
        directory = self.directory / f"{name}-{len(self.islands)}"
        arguments = ["join", self.url, "--name", name, "--run-dir", str(directory), "--quiet", "--threads", "1"]
        arguments += ["--no-tensorboard", "--log-every", "1", *flags]

        def live() -> int:
            alter(poison, slow_s)
            return cli.main(arguments)

        island = self._fork(name, live, host, directory)
        self.islands.append(island)
        return island

    def wait(self, until: Callable[[], bool], limit_s: float = 600.0) -> float:
        """Until it is so; the seconds that it took. Raises SystemExit after `limit_s`, and stops all."""
        start = time.monotonic()
        while not until():
            if time.monotonic() - start > limit_s:
                self.end()
                raise SystemExit(f"{self.directory.name}: not so within {limit_s:.0f} s, see {self.directory}")
            time.sleep(POLL_S)
        return time.monotonic() - start

    def wait_for_end(self, limit_s: float = 1200.0) -> list[int]:
        """Exit codes of all processes, in the order of starting."""
        self.wait(lambda: all(island.poll() is not None for island in self.islands), limit_s)
        return [island.code for island in self.islands if island.code is not None]

    def end(self) -> None:
        """Kill what is left of it."""
        for island in self.islands:
            if island.poll() is None:
                island.kill()

    def versions(self) -> int:
        """Commits that are there."""
        folder = self.folder / keys.COMMITS
        return len(list(folder.iterdir())) if folder.is_dir() else 0

    def commits(self) -> list[Commit]:
        """All that can be read, in order."""
        found = []
        for path in sorted((self.folder / keys.COMMITS).iterdir()):
            try:
                found.append(Commit.read(path.read_bytes()))
            except PayloadError:
                continue
        return found

    def living(self) -> list[Island]:
        """Members whose processes run."""
        return [island for island in self.islands if island.poll() is None]

    def verified(self) -> bool:
        """Whether `lowcomm verify` finds that all digests fit."""
        island = self._fork("verify", lambda: cli.main(["verify", self.url]), self.host)
        while island.poll() is None:
            time.sleep(POLL_S)
        return island.code == 0

    def _fork(self, name: str, work: Callable[[], int], host: int | None, directory: Path | None = None) -> Island:
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            code = 70
            try:
                os.setsid()
                log = os.open(self.directory / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                os.dup2(log, 1)
                os.dup2(log, 2)
                if host is not None:
                    enter(host)
                torch.set_num_threads(1)
                code = work()
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return Island(name=name, pid=pid, directory=directory or self.directory)


def enter(host: int) -> None:
    """Go to the network of a host of the laboratory."""
    with Path(f"/var/run/netns/lowcomm{host}").open("rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def alter(poison: int | None, slow_s: float) -> None:
    """Make this process's member a bad or a slow one."""
    step, count = Hands.step, 0

    def altered(self: Hands, block: int | None, number: int, lr_step: int) -> Stepped:
        nonlocal count
        stepped = step(self, block, number, lr_step)
        count += 1
        if count == poison:
            with torch.no_grad():
                next(self.run.islands[0].model.parameters()).fill_(math.nan)
        time.sleep(slow_s)
        return stepped

    if poison is not None or slow_s:
        Hands.step = altered


def outcome(run: Run, config: RunConfig) -> dict[str, Any]:
    """What all scenarios say: exit codes, one history, all of the text exactly once, the loss."""
    done = [island for island in run.islands if island.code == 0]
    ends = [island.summary() for island in done]
    target = (config.islands or 1) * config.steps * config.data.seq_len * config.data.batch_size
    return {
        "members": len(run.islands),
        "exit_codes": sorted(island.code for island in run.islands if island.code is not None),
        "versions": run.versions(),
        "one_history": len({end["weights_sha256"] for end in ends}) == 1,
        "verified": run.verified(),
        "tokens": ends[0]["tokens"],
        "exactly_once": all(end["tokens"] == target for end in ends),
        "val_loss": ends[0]["val_loss"],
        "parameters": ends[0]["parameters"],
    }
