"""The parts of the page that are not plots: header, run table, islands, configuration, environment, notes.

Every text that comes from a run goes through `text`; names and notes are untrusted.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from lowcomm.report.bandwidth import link_use
from lowcomm.report.figures import colour
from lowcomm.report.load import Run, number
from lowcomm.report.network import network_tiles
from lowcomm.report.series import Headline, headline, island_rows, warnings_of
from lowcomm.report.units import (
    DASH,
    format_bits,
    format_bytes,
    format_count,
    format_decimal,
    format_rate,
    format_seconds,
    format_share,
)

_STATUSES = ("done", "running", "stopped", "failed")
"""Those with a colour of their own."""
NOTED = ("note", "deadline", "lost", "version")
_NOTES_SHOWN = 200
_MISSING = object()


def text(value: object) -> str:
    """Escaped for HTML, quotes included."""
    return html.escape(str(value), quote=True)


def tag(index: int, name: str) -> str:
    """A run's colour mark and name."""
    mark = f'<i style="background:var({colour(index)})"></i>'
    return f'<span class="tag">{mark}<span>{text(name)}</span></span>'


def status(run: Run) -> str:
    """The status as a coloured word; the class is chosen from known words, never taken from the file."""
    known = run.status if run.status in _STATUSES else ""
    return f'<span class="status {known}">{text(run.status)}</span>'


def tiles(run: Run) -> str:
    """The key numbers of a single run."""
    facts = headline(run)
    cells = [_quality(facts), (format_count(facts.tokens), "tokens, all islands")]
    cells += [
        (format_bytes(facts.sent_bytes), "sent per island"),
        (format_bytes(facts.received_bytes), "received per island"),
        (format_share(facts.utilisation), "utilisation"),
        (format_share(facts.sync_share), "of wall-clock in syncs"),
        (format_seconds(facts.wall_s), "wall-clock"),
    ]
    use = link_use(run)
    if use.peak_bytes_per_s is not None:
        cells.append((format_bits(use.peak_bytes_per_s), "link rate needed at the peak"))
    if use.link_bytes_per_s is not None:
        cells.append((format_bits(use.link_bytes_per_s), "link rate measured"))
    if use.misses:
        cells.append((format_seconds(use.waited_s), f"waited past {use.misses} deadlines"))
    cells += network_tiles(run)
    body = "".join(f'<div class="tile panel"><b>{value}</b><span>{label}</span></div>' for value, label in cells)
    return f'<div class="tiles">{body}</div>'


def _quality(facts: Headline) -> tuple[str, str]:
    if facts.val_bpb is None and facts.val_loss is not None:
        return format_decimal(facts.val_loss), "val. nats per token"
    return format_decimal(facts.val_bpb), "val. bits per byte"


def subtitle(run: Run) -> str:
    """Status, size and place of a single run in one line."""
    facts, parts = headline(run), [status(run)]
    parameters = number(run.summary.get("parameters"))
    if parameters is not None:
        parts.append(f"{format_count(parameters)} parameters")
    trainable = number(run.summary.get("parameters_trainable"))
    if trainable is not None and trainable != parameters:
        parts.append(f"{format_count(trainable)} trainable")
    if facts.islands is not None:
        parts.append(f"{facts.islands} island{'s' if facts.islands != 1 else ''}")
    if facts.rounds is not None:
        parts.append(f"{facts.rounds} round{'s' if facts.rounds != 1 else ''}")
    return f'<p class="sub">{" · ".join([*parts, text(run.path)])}</p>'


def run_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The key numbers of several runs, one row each; the best quality is bold."""
    facts, uses = [headline(run) for run in runs], [link_use(run) for run in runs]
    use_bpb = any(fact.val_bpb is not None for fact in facts)
    quality = [fact.val_bpb if use_bpb else fact.val_loss for fact in facts]
    best = min((value for value in quality if value is not None), default=None)
    heads = ["Val. bits/byte" if use_bpb else "Val. nats/token", "Tokens", "Sent/island", "Received/island"]
    heads += ["Utilisation", "Sync share", "Peak rate", "Wall-clock"]
    rows = []
    for index, (run, name, fact, use, value) in enumerate(zip(runs, names, facts, uses, quality, strict=True)):
        mark = " best" if value is not None and value == best else ""
        cells = [f'<td class="name">{tag(index, name)}</td><td>{status(run)}</td>']
        cells.append(f'<td class="n{mark}">{format_decimal(value)}</td>')
        cells += [
            f'<td class="n">{cell}</td>'
            for cell in (
                format_count(fact.tokens),
                format_bytes(fact.sent_bytes),
                format_bytes(fact.received_bytes),
                format_share(fact.utilisation),
                format_share(fact.sync_share),
                format_bits(use.peak_bytes_per_s),
                format_seconds(fact.wall_s),
            )
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return table(["Run", "Status"], heads, rows)


def table(
    left: Sequence[str], right: Sequence[str], rows: Sequence[str], extra: str = "", last: Sequence[str] = ()
) -> str:
    """`left` and `right` are headings by alignment and come escaped; `last` are more of the left kind, at the end."""
    heads = "".join(f"<th>{head}</th>" for head in left) + "".join(f'<th class="n">{h}</th>' for h in right)
    heads += "".join(f"<th>{head}</th>" for head in last)
    return (
        f'<div class="panel scroll {extra}"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def warning_list(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What a reader must know before trusting the page; empty where there is nothing."""
    items = []
    for run, name in zip(runs, names, strict=True):
        prefix = f"{text(name)}: " if len(runs) > 1 else ""
        items += [f"<li>{prefix}{text(warning)}</li>" for warning in warnings_of(run)]
    return f'<ul class="warnings">{"".join(items)}</ul>' if items else ""


def legend(names: Sequence[str]) -> str:
    """One legend for all curves."""
    items = "".join(tag(index, name) for index, name in enumerate(names))
    return f'<div class="legend">{items}</div>'


def timeline_key(runs: int) -> str:
    """What the colours of the timeline mean."""
    marks = (
        *(
            ("--training", "training"),
            ("--blocked", "training waits for the sync"),
            ("--late", "waits past a deadline"),
        ),
        *(("--evaluation", "evaluation"), ("--roll", "link: waits for other islands")),
        ("--run-0", "link: exchange" if runs == 1 else "link: exchange, in the run's colour"),
    )
    items = "".join(f'<span class="tag"><i style="background:var({c})"></i><span>{t}</span></span>' for c, t in marks)
    return f'<div class="legend">{items}</div>'


def island_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """One row per island of each run."""
    several = len(runs) > 1
    rows = []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for row in island_rows(run):
            first = f'<td class="name">{tag(index, name)}</td>' if several else ""
            cells = (
                format_count(row.tokens),
                format_decimal(row.loss),
                format_bytes(row.sent_bytes),
                format_bytes(row.received_bytes),
                format_share(row.sync_share),
                format_rate(row.steps_per_s),
            )
            numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
            rows.append(f"<tr>{first}<td>{row.island}</td>{numbers}</tr>")
    if not rows:
        return '<div class="panel empty">No island has logged a step yet.</div>'
    left = ["Run", "Island"] if several else ["Island"]
    right = ["Tokens", "Last loss (nats/token)", "Sent", "Received", "Sync share", "Steps"]
    return table(left, right, rows, "tall")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys; anything else, lists included, is a leaf."""
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _leaf(value: Any) -> str:
    if value is _MISSING:
        return DASH
    return text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _key_table(columns: Sequence[dict[str, Any]], keys: Sequence[str], names: Sequence[str]) -> str:
    heads = ["Key", *([text(name) for name in names] if len(names) > 1 else ["Value"])]
    rows = []
    for key in keys:
        cells = "".join(f'<td class="code">{_leaf(column.get(key, _MISSING))}</td>' for column in columns)
        rows.append(f'<tr><th class="code">{text(key)}</th>{cells}</tr>')
    return table(heads, [], rows, "tall")


def _keys(columns: Sequence[dict[str, Any]]) -> list[str]:
    """All keys in the order of first appearance."""
    return list(dict.fromkeys(key for column in columns for key in column))


def configuration(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The full configuration of one run, or the keys in which several differ."""
    columns = [flatten(run.config) for run in runs]
    keys = _keys(columns)
    if len(runs) == 1:
        return (
            f'<details class="panel"><summary>All {len(keys)} resolved values</summary>'
            f"{_key_table(columns, keys, names)}</details>"
        )
    # JSON text, not ==, so that 1, 1.0 and true count as different values.
    spelled = [{key: json.dumps(value, sort_keys=True) for key, value in column.items()} for column in columns]
    differing = [key for key in keys if len({column.get(key) for column in spelled}) > 1]
    equal = f'<p class="hint">{len(keys) - len(differing)} of {len(keys)} values are equal in all runs.</p>'
    return equal + _key_table(columns, differing, names) if differing else equal


def environment(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Versions, commit, hardware, interfaces and command, a column per run."""
    columns = [flatten(run.environment) for run in runs]
    keys = _keys(columns)
    if not keys:
        return '<div class="panel empty">No environment.json was found.</div>'
    return _key_table(columns, keys, names)


def notes(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What happened during the runs: resumed, contribution dropped and so on; the last ones of each run."""
    rows, left_out = [], 0
    for run, name in zip(runs, names, strict=True):
        lines = [event for event in run.events if event.get("event") in NOTED and event.get("note")]
        left_out += max(0, len(lines) - _NOTES_SHOWN)
        for line in lines[-_NOTES_SHOWN:]:
            first = f'<td class="name">{text(name)}</td>' if len(runs) > 1 else ""
            where = [DASH if line.get(key) is None else text(line[key]) for key in ("round", "island")]
            cells = "".join(f'<td class="n">{cell}</td>' for cell in where)
            time = format_seconds(number(line.get("time_s")))
            rows.append(f'<tr>{first}<td>{text(line.get("note"))}</td><td class="n">{time}</td>{cells}</tr>')
    if not rows:
        return ""
    left = ["Run", "Note"] if len(runs) > 1 else ["Note"]
    hint = f'<p class="hint">{left_out} earlier notes are left out.</p>' if left_out else ""
    return f"<h2>Notes</h2>{hint}{table(left, ['Time', 'Round', 'Island'], rows, 'tall')}"
