"""The summary of one or several runs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lowcomm.report.load import Run
from lowcomm.report.series import headline, labels
from lowcomm.report.units import format_bytes, format_count, format_decimal, format_seconds, format_share

CAPTION = "bits/byte: validation; sent, received: mean per island; sync: share of wall-clock that it stopped training"


def summary_table(runs: Sequence[Run]) -> Table:
    """One row per run: quality, tokens, bytes per island in both directions, sync share, wall-clock.

    80 columns for a name of up to 20 letters; a longer one is never broken, so that it can be copied.
    """
    table = Table(
        title="Runs", title_justify="left", caption=CAPTION, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        padding=(0, 0, 0, 1),
    )  # fmt: skip
    table.add_column("run", no_wrap=True)
    table.add_column("status", no_wrap=True)
    columns = ("bits/byte", "tokens", "sent", "received", "sync", "wall")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for run, label in zip(runs, labels(runs), strict=True):
        facts = headline(run)
        cells = (
            format_decimal(facts.val_bpb),
            format_count(facts.tokens),
            format_bytes(facts.sent_bytes),
            format_bytes(facts.received_bytes),
            format_share(facts.sync_share if facts.utilisation is None else 1 - facts.utilisation),
            format_seconds(facts.wall_s),
        )
        # Text, not str: rich would read [brackets] in a run's name as markup.
        table.add_row(Text(label), Text(run.status), *cells)
    return table
