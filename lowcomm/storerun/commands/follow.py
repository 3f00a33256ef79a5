"""`lowcomm follow URL DIR`: the newest weights of a run in a directory for transformers, with read access only."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lowcomm.exchange.store import Store
from lowcomm.flags.parse import parse_flags
from lowcomm.report.units import format_bytes
from lowcomm.run.signals import caught
from lowcomm.store.objects import StoreError
from lowcomm.store.patch_code import check_zstd
from lowcomm.store.subscriber import Subscriber, Version
from lowcomm.storerun.history import is_over
from lowcomm.storerun.joining import Opened, check_own, check_paths, open_run
from lowcomm.storerun.served import ServedDirectory, base_of, needs_text
from lowcomm.types import ConfigError, LowcommError, require

DONE, STOPPED = 0, 3
SLICE_S = 0.2
"""A wait looks for signals so often."""
OVER_EVERY_S = 30.0
"""While nothing comes, it looks so often whether the run is over."""


def follow(arguments: Sequence[str]) -> int:
    """Until the run is over (0) or a signal comes (3). Raises ConfigError; LowcommError where DIR can't be written."""
    parser = argparse.ArgumentParser(
        prog="lowcomm follow",
        description="Keep the newest published weights of a run in DIR, which transformers loads. Flags of this "
        "machine may follow: where model and tokenizer lie here.",
    )
    parser.add_argument("url", metavar="URL", help="a directory, s3://, gs:// or az://; read access is enough")
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="written by nobody else; version.json says what it is"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="write DIR every N versions (default: 1)")
    parser.add_argument("--once", action="store_true", help="write the newest version that is there, and end")
    parser.add_argument("--allow", action="append", default=[], type=Path, metavar="PATH", help="the run may read it")
    options, flags = parser.parse_known_args(list(arguments))
    require(1 <= options.every <= 10**6, "--every", options.every, "1 to 1000000 versions", "leave it out")
    opened = open_run(options.url)
    config = parse_flags(opened.config, flags, f"lowcomm follow {options.url} DIR")
    check_own(opened.config, config)
    _check_published(opened)
    check_zstd()
    stored = opened.config
    read = [(stored.model, config.model), (stored.data.tokenizer, config.data.tokenizer)]
    read += [(stored.data, config.data)] if needs_text(config) else []
    for theirs, mine in read:
        check_paths(theirs, mine, options.allow)
    served = ServedDirectory(options.directory, base_of(config, opened.run, opened.islands), opened.run)
    try:
        return _Following(opened, served, options.every, options.once).live()
    finally:
        served.close()


def _check_published(opened: Opened) -> None:
    choice = opened.config.sync.exchange
    if not isinstance(choice, Store) or choice.publish_every is None:
        raise ConfigError(
            f"store = {opened.objects.where!r}: the run publishes no versions (sync.exchange.publish_every = None). "
            "Fix: start it with Store(publish_every=1), or take the export of a member"
        )


class _Following:
    """The loop."""

    def __init__(self, opened: Opened, served: ServedDirectory, every: int, once: bool) -> None:
        self.objects, self.served, self.every, self.once = opened.objects, served, every, once
        self.subscriber = Subscriber(opened.objects, opened.run.run_id, opened.run.layouts)
        self.console = Console()
        self.written: Version | None = None
        self._told_bytes = 0
        self._trouble: str | None = None

    def live(self) -> int:
        """Look, write, wait; longer while nothing comes."""
        waits, looked_s = 0, time.monotonic()
        with caught() as signals:
            while not signals:
                came = self._look()
                if self._ended():
                    return DONE
                waits = 0 if came else waits + 1
                if not came and time.monotonic() - looked_s >= OVER_EVERY_S:
                    looked_s = time.monotonic()
                    if self._over():
                        return DONE
                left_s = min(self.objects.poll_first_s * 1.5**waits, self.objects.poll_most_s)
                while left_s > 0 and not signals:
                    time.sleep(min(SLICE_S, left_s))
                    left_s -= SLICE_S
        return STOPPED

    def _look(self) -> bool:
        """Whether a new version was reached."""
        try:
            found = self.subscriber.poll()
        except StoreError as error:
            if error.cause.value != self._trouble:
                self._say(f"warning: {error}")
            self._trouble, found = error.cause.value, None
        else:
            self._trouble = None
        for note in self.subscriber.notes:
            self._say(f"warning: {note}")
        self.subscriber.notes.clear()
        if found is not None and (self._is_due(found) or self.once):
            self._write(found)
        return found is not None

    def _is_due(self, found: Version) -> bool:
        return self.written is None or found.last or found.number - self.written.number >= self.every

    def _write(self, version: Version) -> None:
        self.served.write(self.subscriber.fragments, version)
        self.written, down = version, self.objects.counts.down_bytes
        self._say(f"version {version.number}: {version.tokens:,} tokens, {format_bytes(down - self._told_bytes)} read")
        self._told_bytes = down

    def _ended(self) -> bool:
        if self.once and self.written is None:
            raise LowcommError("no version can be read yet. Fix: leave out --once, and it waits for the first")
        return self.once or (self.written is not None and self.written.last)

    def _over(self) -> bool:
        """Whether the run has ended without publishing its last version: what was reached is written then."""
        try:
            over = is_over(self.objects)
        except StoreError:
            return False
        reached = self.subscriber.at
        if over and reached is not None and reached != self.written:
            self._write(reached)
        if over:
            self._say(f"the run is over; its newest published version is {reached.number if reached else 'none'}")
        return over

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
