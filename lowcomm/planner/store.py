"""The part of `lowcomm plan` for runs that live in a store: its flags, and what is shown."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lowcomm.plan.runtime import Job
from lowcomm.plan.store import DIRECTORY_POLL_S, POLL_S, Prices, StoreLink, StoreRound
from lowcomm.report.units import format_bytes, format_seconds
from lowcomm.types import require

if TYPE_CHECKING:
    from rich.table import Table

FINE = float("inf")


def add_store_flags(parser: argparse.ArgumentParser) -> None:
    """Those of a run over a store."""
    add, prices = parser.add_argument, Prices()
    add("--store-rate", type=float, metavar="MBIT", help="the run lives in a store: a member's speed to it, in Mbit/s")
    add("--store-rtt-ms", type=float, default=0.0, metavar="MS", help="of a small request to the store (default: 0)")
    add("--store-shared-rate", type=float, metavar="MBIT", help="the store's own line, where all members share one")
    dollars = f"of 10^9 bytes that leave the store (default: {prices.per_gb})"
    add("--store-price", type=float, default=prices.per_gb, metavar="DOLLARS", help=dollars)
    each = f"of 1000 requests (default: {prices.per_thousand_requests})"
    add("--store-request-price", type=float, default=prices.per_thousand_requests, metavar="DOLLARS", help=each)
    add("--store-directory", action="store_true", help="the store is a directory: looked at every 20 ms")


def check_store_flags(options: argparse.Namespace) -> None:
    """Raise ConfigError for a number out of range."""
    for name, value in (("--store-rate", options.store_rate), ("--store-shared-rate", options.store_shared_rate)):
        ok = value is None or 0 < value < FINE
        require(ok, name, value, "a finite number above 0", f"{name} 1000")
    for name in ("store_rtt_ms", "store_price", "store_request_price"):
        value, flag = getattr(options, name), f"--{name.replace('_', '-')}"
        require(0 <= value < FINE, flag, value, "a finite number, 0 or more", f"{flag} 0")


def store_link(options: argparse.Namespace) -> StoreLink:
    """The way to the store."""
    shared = options.store_shared_rate
    return StoreLink(
        rate_bytes_per_s=options.store_rate * 125_000,
        rtt_s=options.store_rtt_ms / 1000,
        shared_bytes_per_s=None if shared is None else shared * 125_000,
        poll_s=DIRECTORY_POLL_S if options.store_directory else POLL_S,
    )


def store_lines(job: Job, rounds: list[StoreRound], goal: float) -> Iterator[str]:
    """The answer first."""
    best = rounds[0]
    reached = "" if best.utilisation >= goal else f" (none reaches {goal:.1%})"
    yield (
        f"plan over a store: a round of {best.every} inner steps (H), codec {best.codec.recipe}: utilisation "
        f"{best.utilisation:.1%}{reached}, ${best.dollars_per_day:,.2f} a day, ${best.dollars:,.2f} for the run of "
        f"{format_seconds(best.wall_s)}"
    )
    yield (
        f"per member and round: {format_bytes(best.up_bytes)} up ({format_bytes(best.snapshot_bytes)} are snapshots), "
        f"{format_bytes(best.down_bytes)} down, {best.requests:.0f} requests, {format_seconds(best.blocked_s)} without "
        f"training"
    )
    day = 86400 / best.round_s * job.islands
    yield (
        f"all members in a day: {format_bytes(day * best.up_bytes)} up, {format_bytes(day * best.down_bytes)} down, "
        f"{day * best.requests:,.0f} requests. The recipe: sync.exchange = Store(); start it with --store URL"
    )


def store_table(rounds: list[StoreRound]) -> Table:
    """One row for each codec."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="Over a store", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("codec", overflow="fold")
    for column in ("H", "util.", "blocked", "up/round", "down/round", "requests", "$/day", "$/run", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for r in rounds:
        table.add_row(
            r.codec.name, str(r.every), f"{r.utilisation:.1%}", format_seconds(r.blocked_s), format_bytes(r.up_bytes),
            format_bytes(r.down_bytes), f"{r.requests:.0f}", f"{r.dollars_per_day:,.2f}", f"{r.dollars:,.2f}",
            f"{r.penalty:+.1%}",
        )  # fmt: skip
    return table
