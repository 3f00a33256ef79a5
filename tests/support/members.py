"""Members of a store run as threads of one process, over a directory."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowcomm.config import RunConfig, SyncConfig
from lowcomm.data import build_data
from lowcomm.exchange.store import Store
from lowcomm.membership import World
from lowcomm.outer import Nesterov
from lowcomm.store.open import open_objects
from lowcomm.storerun.build import build_hands, build_member, preflight
from lowcomm.storerun.checks import check_store_run
from lowcomm.storerun.create_run import create_run
from lowcomm.storerun.joining import open_run
from lowcomm.storerun.living import live
from lowcomm.storerun.member import Member
from lowcomm.storerun.plan import shares_data, with_store
from tests.support.runs import small

ALONE = World(rank=0, size=1, local_rank=0, local_size=1)


def store_config(corpus: Path, **changes: Any) -> RunConfig:
    """The small run over a store: 2 islands, 3 rounds of 4 steps; patience that no test waits for by accident."""
    sync = SyncConfig(every=4, outer=Nesterov(lr=0.7, momentum=0.5), exchange=Store(patience_s=2.0))
    base = small(corpus, None, transport="collective", sync=sync, log_every=1)
    return dataclasses.replace(base, **changes)


def make_run(store: Path, config: RunConfig) -> None:
    """What `lowcomm train --store` does before it starts islands."""
    assert config.islands is not None
    config = with_store(config, str(store))
    check_store_run(config, config.islands or 1)
    islands = config.islands or 1
    data = build_data(config.data, islands if shares_data(config) else 1, config.seed)
    create_run(open_objects(str(store), make=True), config, data, islands)


def make_member(store: Path, directory: Path, name: str, **own: Any) -> Member:
    """One that is about to heal."""
    opened = open_run(str(store))
    config = dataclasses.replace(opened.config, run_dir=directory, threads=1, device="cpu", tensorboard=False, **own)
    data = preflight(opened, config, ALONE)
    return build_member(opened, config, build_hands(opened, config, data, ALONE, shown=False), name=name)


@dataclass
class Lives:
    """Members that live in threads."""

    store: Path
    root: Path
    members: list[Member] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    codes: dict[str, int | BaseException] = field(default_factory=dict)

    def start(self, name: str, **own: Any) -> Member:
        """Another member begins."""
        return self.begin(name, make_member(self.store, self.root / name, name, **own))

    def begin(self, name: str, member: Member) -> Member:
        """One that was made begins."""

        def run() -> None:
            try:
                self.codes[name] = live(member)
            except BaseException as error:
                self.codes[name] = error

        self.members.append(member)
        self.threads.append(threading.Thread(target=run, name=name, daemon=True))
        self.threads[-1].start()
        return member

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for an event."""
        end = time.monotonic() + 120
        while not what():
            assert time.monotonic() < end
            assert not any(isinstance(c, BaseException) for c in self.codes.values()), self.codes
            time.sleep(0.01)

    def end(self) -> dict[str, int | BaseException]:
        """Exit codes, once all are over."""
        for thread in self.threads:
            thread.join(120)
            assert not thread.is_alive()
        return self.codes


def leave_without_a_word(member: Member) -> None:
    """As kill -9 does: nothing more is sent."""

    def gone() -> list[Any]:
        raise SystemExit

    member.island.poll = gone
