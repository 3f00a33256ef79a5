"""From events to what is shown: curves, bars of the sync timeline, headline numbers, rows per island."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from lowcomm.report.load import Event, Run, number

POINTS_PER_TRACE = 2000


@dataclass(kw_only=True)
class Curve:
    """One quantity against the three costs; all lists have one entry per point."""

    y: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    """Total over the islands."""
    sent_bytes: list[float] = field(default_factory=list)
    """Per island so far (the mean, in a curve of the whole run)."""
    time_s: list[float] = field(default_factory=list)

    def add(self, y: float, tokens: float, sent_bytes: float, time_s: float) -> None:
        """Append one point."""
        self.y.append(y)
        self.tokens.append(tokens)
        self.sent_bytes.append(sent_bytes)
        self.time_s.append(time_s)


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The numbers that a run is judged by; None where nothing was recorded."""

    val_bpb: float | None
    val_loss: float | None
    """Nats per token."""
    tokens: float | None
    """Total over the islands."""
    sent_bytes: float | None
    """Mean per island."""
    received_bytes: float | None
    """Mean per island."""
    wall_s: float | None
    sync_share: float | None
    """Seconds in syncs over wall-clock; may overlap training."""
    utilisation: float | None
    islands: int | None
    rounds: int | None


@dataclass(frozen=True, kw_only=True)
class IslandRow:
    """One island's totals; None where nothing was recorded."""

    island: int
    tokens: float | None
    loss: float | None
    """Nats per token, last logged."""
    sent_bytes: float | None
    received_bytes: float | None
    sync_share: float | None
    steps_per_s: float | None


def thin(y: Sequence[float], limit: int = POINTS_PER_TRACE) -> list[int]:
    """Indices of at most `limit` points (limit >= 4) that keep the ends and every bucket's extremes.

    Averages would hide the spike that somebody opens the report to look for.
    """
    if len(y) <= limit:
        return list(range(len(y)))
    buckets = limit // 2 - 1
    keep = {0, len(y) - 1}
    for bucket in range(buckets):
        span = range(len(y) * bucket // buckets, len(y) * (bucket + 1) // buckets)
        keep.add(min(span, key=lambda i: y[i]))
        keep.add(max(span, key=lambda i: y[i]))
    return sorted(keep)


def _index(event: Event, key: str) -> int | None:
    value = number(event.get(key))
    return None if value is None else int(value)


def islands_of(run: Run) -> list[int]:
    """The islands that logged anything, in order."""
    found = {_index(e, "island") for e in run.events if e.get("event") in ("step", "sync")}
    return sorted(i for i in found if i is not None)


def train_curves(run: Run) -> tuple[Curve, dict[int, Curve]]:
    """Training loss (nats per token): the mean over the islands that logged a step, and each island.

    A resumed run repeats steps; the last line of a step counts. Lines without a finite loss are left out.
    """
    by_step: dict[int, dict[int, Event]] = {}
    for event in run.of("step"):
        step, island = _index(event, "step"), _index(event, "island")
        if step is not None and island is not None and number(event.get("loss")) is not None:
            by_step.setdefault(step, {})[island] = event
    mean, each = Curve(), {island: Curve() for island in islands_of(run)}
    tokens: dict[int, float] = {}
    sent: dict[int, float] = {}
    for _, lines in sorted(by_step.items()):
        for island, event in lines.items():
            tokens[island] = number(event.get("tokens")) or 0.0
            sent[island] = number(event.get("bytes_sent")) or 0.0
        total = sum(tokens.values())
        time_s = max(number(event.get("time_s")) or 0.0 for event in lines.values())
        losses = {island: number(event.get("loss")) or 0.0 for island, event in lines.items()}
        mean.add(fmean(losses.values()), total, fmean(sent.values()), time_s)
        for island, loss in losses.items():
            each[island].add(loss, total, sent[island], number(lines[island].get("time_s")) or 0.0)
    return mean, each


def eval_curve(run: Run, key: str) -> Curve:
    """`val_bpb` or `val_loss` of the global model; the last line of a step counts."""
    by_step: dict[int, Event] = {}
    for event in run.of("eval"):
        step = _index(event, "step")
        if step is not None and number(event.get(key)) is not None:
            by_step[step] = event
    curve = Curve()
    for _, event in sorted(by_step.items()):
        costs = [number(event.get(cost)) or 0.0 for cost in ("tokens", "bytes_sent", "time_s")]
        curve.add(number(event.get(key)) or 0.0, *costs)
    return curve


def _last(events: Sequence[Event], key: str) -> float | None:
    values = (number(event.get(key)) for event in reversed(events))
    return next((value for value in values if value is not None), None)


def _total(events: Sequence[Event], key: str) -> float:
    return sum(number(event.get(key)) or 0.0 for event in events)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def _share(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _by_island(run: Run) -> dict[int, list[Event]]:
    """Step and sync lines of each island; one pass, since a long run has millions of lines."""
    groups: dict[int, list[Event]] = {island: [] for island in islands_of(run)}
    for event in run.events:
        island = _index(event, "island")
        if event.get("event") in ("step", "sync") and island is not None:
            groups[island].append(event)
    return groups


def island_rows(run: Run) -> list[IslandRow]:
    """One row per island that logged anything."""
    rows: list[IslandRow] = []
    for island, lines in _by_island(run).items():
        steps = [e for e in lines if e.get("event") == "step"]
        syncs = [e for e in lines if e.get("event") == "sync"]
        step_s = _mean([number(e.get("step_s")) for e in steps])
        rows.append(
            IslandRow(
                island=island,
                tokens=_last(lines, "tokens"),
                loss=_last(steps, "loss"),
                sent_bytes=_last(lines, "bytes_sent"),
                received_bytes=_last(lines, "bytes_received"),
                sync_share=_share(_total(syncs, "sync_s"), _last(lines, "time_s")),
                steps_per_s=1 / step_s if step_s else None,
            )
        )
    return rows


def headline(run: Run) -> Headline:
    """From the summary where it exists, else from the events so far."""
    rows, islands = island_rows(run), max(len(islands_of(run)), 1)
    evals, syncs = run.of("eval"), run.of("sync")
    known = {key: number(value) for key, value in run.summary.items()}

    def pick(key: str, fallback: float | None) -> float | None:
        value = known.get(key)
        return fallback if value is None else value

    times_s = [t for e in run.events if (t := number(e.get("time_s"))) is not None]
    wall_s = pick("wall_s", max(times_s, default=None))
    tokens = [row.tokens for row in rows if row.tokens is not None]
    blocked = _share(pick("blocked_s", _total(syncs, "blocked_s") / islands), wall_s)
    rounds = {r for e in syncs if (r := _index(e, "round")) is not None}
    island_count = pick("islands", len(rows) or None)
    round_count = pick("rounds", len(rounds) if syncs else None)
    return Headline(
        val_bpb=pick("val_bpb", _last(evals, "val_bpb")),
        val_loss=pick("val_loss", _last(evals, "val_loss")),
        tokens=pick("tokens", sum(tokens) if tokens else None),
        sent_bytes=pick("bytes_sent", _mean([row.sent_bytes for row in rows])),
        received_bytes=pick("bytes_received", _mean([row.received_bytes for row in rows])),
        wall_s=wall_s,
        sync_share=_share(pick("sync_s", _total(syncs, "sync_s") / islands), wall_s),
        utilisation=pick("utilisation", None if blocked is None else 1 - blocked),
        islands=None if island_count is None else int(island_count),
        rounds=None if round_count is None else int(round_count),
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """One name per run, made different by the directory and then by a number where names repeat."""
    names = [run.name for run in runs]
    texts = [run.name if names.count(run.name) == 1 else f"{run.name} ({run.path.resolve().name})" for run in runs]
    return [text if texts.count(text) == 1 else f"{text} #{texts[:i].count(text) + 1}" for i, text in enumerate(texts)]


def warnings_of(run: Run) -> list[str]:
    """What a reader must know before trusting the curves."""
    found: list[str] = []
    if run.status == "failed":
        found.append("the run failed")
    attack = run.summary.get("attack")
    if isinstance(attack, dict):
        found.append(f"islands {attack.get('islands')} attacked on purpose ({attack.get('name')})")
    late = run.of("deadline")
    if late:
        causes = Counter(str(event.get("cause")) for event in late)
        waited_s = sum(number(event.get("waited_s")) or 0.0 for event in late)
        why = ", ".join(f"{count} by a {cause}" for cause, count in causes.most_common())
        found.append(f"{len(late)} exchanges missed their deadline ({why}); islands waited {waited_s:.3g} s in all")
    lost = sum(number(e.get("loss")) is None for e in run.of("step"))
    if lost:
        found.append(f"{lost} logged training losses were not finite and are left out")
    if run.unreadable_lines:
        found.append(f"{run.unreadable_lines} lines of metrics.jsonl could not be read and are left out")
    if run.torn:
        found.append("the last line of metrics.jsonl is cut short and is left out")
    return found
