"""The summary of one or several runs for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from lowcomm.report.load import Run
from lowcomm.report.series import headline, labels
from lowcomm.report.units import format_bytes, format_count, format_decimal, format_seconds, format_share


def summary_table(runs: Sequence[Run]) -> Table:
    """One row per run: quality, tokens, bytes per island in both directions, sync share, wall-clock."""
    table = Table(title="Runs", title_justify="left", caption="bytes: mean per island", caption_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("status")
    columns = ("val bits/byte", "tokens", "sent", "received", "sync share", "wall-clock")
    for column in columns:
        table.add_column(column, justify="right")
    for run, label in zip(runs, labels(runs), strict=True):
        facts = headline(run)
        cells = (
            format_decimal(facts.val_bpb),
            format_count(facts.tokens),
            format_bytes(facts.sent_bytes),
            format_bytes(facts.received_bytes),
            format_share(facts.sync_share),
            format_seconds(facts.wall_s),
        )
        # Text, not str: rich would read [brackets] in a run's name as markup.
        table.add_row(Text(label), Text(run.status), *cells)
    return table
