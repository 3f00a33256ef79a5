"""`lowcomm status`, `log`, `verify` and `stop`: what a store says of its run, from any machine that can read it."""

from __future__ import annotations

import argparse
import secrets
import time
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lowcomm.store import keys
from lowcomm.store.commit import Commit
from lowcomm.store.create import create
from lowcomm.store.objects import Objects, StoreError
from lowcomm.storerun.create_run import back_off
from lowcomm.storerun.history import History, commits, follow, is_over, read_history
from lowcomm.storerun.joining import Opened, open_run
from lowcomm.storerun.names import gone
from lowcomm.storerun.said import header_of
from lowcomm.storerun.verify import verify
from lowcomm.types import ConfigError

WATCH_S = 2.0


def look(command: str, arguments: Sequence[str]) -> int:
    """Run one of the four commands; returns the exit code."""
    helps = {
        "status": "Members, version, who is late, bytes, loss.",
        "log": "One line per commit.",
        "verify": "Replay the chain, compare digests, name the first version that does not fit. "
        "Of two run directories: say which is wrong (see `lowcomm audit`).",
        "stop": "Ask the members to finish their round and end the run.",
    }
    parser = argparse.ArgumentParser(prog=f"lowcomm {command}", description=helps[command])
    parser.add_argument("url", metavar="URL", help="a directory, s3://, gs:// or az://")
    if command == "status":
        parser.add_argument("--watch", action="store_true", help="look again every 2 seconds until the run is over")
    options = parser.parse_args(list(arguments))
    opened, console = open_run(options.url), Console()
    try:
        if command == "status":
            return _status(opened, console, options.watch)
        if command == "log":
            return _log(opened.objects, console)
        return (
            verify(opened, lambda line: _say(console, line)) if command == "verify" else _stop(opened.objects, console)
        )
    except StoreError as error:
        raise ConfigError(str(error)) from error


def _status(opened: Opened, console: Console, watch: bool) -> int:
    history = read_history(opened.objects)
    _show(opened, history, console)
    while watch and not is_over(opened.objects):
        time.sleep(WATCH_S)
        if follow(opened.objects, history):
            _show(opened, history, console)
    return 0


def _show(opened: Opened, history: History, console: Console) -> None:
    objects, run = opened.objects, opened.run
    sizes = [(one.key, one.size) for one in objects.list(keys.DELTAS)]
    waiting = {
        found.inc
        for key, _ in sizes
        if (found := keys.read_delta(key)) is not None and found.base >= history.version - run.stale
    }
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    _say(
        console,
        f"{opened.config.name} ({run.run_id[:8]}): version {history.version}, members: {len(history.members)}, "
        f"{sum(size for _, size in sizes) / 1e6:,.1f} MB of contributions kept",
    )
    for column in ("member", "last in", "used", "missed", "staleness", "loss"):
        table.add_column(column, justify="left" if column == "member" else "right", no_wrap=True)
    for inc, seat in sorted(history.members.items(), key=lambda row: (row[1].name, row[0])):
        found = None if seat.key is None else header_of(objects, seat.key)
        loss = None if found is None else found[1].get("loss")
        late = seat.last is not None and seat.last < history.version - 1 and inc not in waiting
        last = "-" if seat.last is None else f"{seat.last}{' (late)' if late else ''}"
        cells = (last, str(seat.used), str(seat.missed), str(seat.staleness), "-" if loss is None else f"{loss:.3f}")
        table.add_row(Text(history.names.of(inc)), *cells)
    console.print(table)
    for version, name, reason in history.gone[-5:]:
        console.print(f"commit {version}: {gone(name, reason)}", markup=False, highlight=False, soft_wrap=True)
    if history.stopped or objects.get_range(keys.STOP, 0, 1) is not None:
        _say(console, "somebody stopped the run")
    if is_over(objects):
        _say(console, "the run is over")
    if history.wall:
        console.print(f"last commit: {history.wall}", highlight=False)


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _log(objects: Objects, console: Console) -> int:
    history = History()
    for version, _, commit in commits(objects, 0):
        if isinstance(commit, str) or commit.v != version:
            console.print(f"{version}  changes nothing: {commit}", markup=False, highlight=False, soft_wrap=True)
            continue
        history.add(commit)
        console.print(_line(commit, history), markup=False, highlight=False, soft_wrap=True)
    return 0


def _line(commit: Commit, history: History) -> str:
    used = [found for u in commit.used if (found := keys.read_delta(u.key)) is not None]
    names = ", ".join(history.names.of(f.inc) + (f" from {f.base}" if f.base != commit.v else "") for f in used)
    parts = [f"{commit.v}  {commit.wall}  by {history.names.of(commit.by)}"]
    parts += [f"used {names}"] if names else ["no contribution"]
    parts += [f"waited {commit.waited_s:.1f} s"] if commit.waited_s >= 0.05 else []
    parts += [f"let in {history.names.of(a.inc)}" for a in commit.admit]
    parts += [gone(history.names.of(r.inc), r.reason) for r in commit.remove]
    parts += [f"announced snapshot {commit.snapshot.version}"] if commit.snapshot is not None else []
    parts += ["stopped"] if commit.stop else []
    return "; ".join(parts)


def _stop(objects: Objects, console: Console) -> int:
    if is_over(objects):
        _say(console, "the run is over already")
        return 0
    create(objects, keys.STOP, secrets.token_hex(16).encode(), back_off(objects))
    _say(console, "asked: the members end their round, the next commit ends the run, and each exports it")
    return 0
