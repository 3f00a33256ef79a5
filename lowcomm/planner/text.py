"""The plan for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lowcomm.plan.choose import Option
from lowcomm.plan.codecs import FP32
from lowcomm.plan.penalty import outer_lr, outer_momentum, outside
from lowcomm.plan.runtime import Settings, predict
from lowcomm.plan.what_if import needed, parse_sizes
from lowcomm.planner.command import Plan
from lowcomm.report.units import format_bytes, format_count, format_seconds

SHOWN = 12
"""Alternatives in the table."""


def summary_lines(plan: Plan) -> Iterator[str]:
    """The answer first, then why, what to expect, and what it rests on."""
    best, job, link = plan.choice.best, plan.job, plan.link
    p, s = best.prediction, best.prediction.settings
    yield (
        f"plan: {best.label}: a sync every {s.every} inner steps (H), {_fragments(s)}, codec {s.codec.recipe}, "
        f"{_connections(s.streams)}, outer learning rate {outer_lr(job, s):.2f}, momentum {outer_momentum(job, s):g}"
    )
    yield f"why: {_why(plan)}"
    yield (
        f"predicted: utilisation {p.utilisation:.1%}, wall-clock {_days(p.wall_s)} for the whole run, "
        f"{format_bytes(p.bytes_per_day)} per day each way and island, loss {best.penalty:+.1%} against data-parallel"
    )
    yield (
        f"per round: {format_seconds(s.every * job.step_s)} of training, {format_seconds(p.blocked_s)} blocked; one "
        f"exchange takes {format_seconds(p.exchange_s)}; {format_bytes(p.sent_bytes)} sent per island"
    )
    yield from _learned(plan)
    note = outside(job, s)
    if note is not None:
        yield f"note: {note}"
    yield (
        f"for: {format_count(job.parameters)} parameters, {job.islands} islands, {format_seconds(job.step_s)} a step "
        f"of {plan.tokens_per_step:,} tokens, {job.steps:,} steps; link {link.rate_bytes_per_s / 125e3:g} Mbit/s, "
        f"{1000 * link.rtt_s:g} ms round trip, loss {link.loss:g}"
    )


def _learned(plan: Plan) -> Iterator[str]:
    """What earlier runs have changed."""
    found = plan.learned
    if found is None:
        return
    best = found.of(plan.job, plan.link, plan.choice.best.prediction.settings)
    yield (
        f"learned: {found.kind} from {found.runs} runs (median error on runs left out {found.error_before:.1%} before, "
        f"{found.error_after:.1%} after): utilisation {best.low:.1%} to {best.high:.1%} for the plan"
    )
    if plan.skipped:
        yield f"left out: {len(plan.skipped)} runs; the first: {plan.skipped[0]}"


def _fragments(s: Settings) -> str:
    if s.fragments > 1:
        flight = f"each with {s.delay} steps to arrive" if s.delay else "nothing hidden"
        return f"{s.fragments} fragments in turn, {flight}"
    if s.delay >= s.every:
        return "the whole model at once, with the next round to arrive"
    return f"the whole model at once, with {s.delay} steps to arrive" if s.delay else "the whole model at once"


def _connections(streams: int) -> str:
    return "1 TCP connection to each peer" if streams == 1 else f"{streams} TCP connections to each peer"


def _why(plan: Plan) -> str:
    """Why these settings and not others."""
    choice, best = plan.choice, plan.choice.best
    goals = [] if plan.utilisation is None else [f"a utilisation of {plan.utilisation:.1%}"]
    goals += [] if plan.budget_s is None else [f"a wall-clock of {_days(plan.budget_s)}"]
    goal = " and ".join(goals)
    if not choice.reached:
        return f"none of {choice.settings:,} settings reaches {goal} on this link; this one comes nearest"
    others = [o for o in choice.alternatives[1:] if o.label != best.label]
    after = f"; next is {others[0].label} with {others[0].penalty:+.1%}" if others else ""
    return (
        f"of the {choice.reaching:,} of {choice.settings:,} settings that reach {goal}, it has the least loss to "
        f"expect: {best.penalty:+.1%}{after}. Of equal ones the simplest is taken"
    )


def alternatives_table(plan: Plan) -> Table:
    """Data-parallel, then the best settings of each kind, best first."""
    table = Table(title="Alternatives", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    for column in ("H", "frag.", "delay", "str.", "util.", "wall-clock", "bytes/day", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for option in [*plan.choice.alternatives[:SHOWN], data_parallel(plan)]:
        p, s = option.prediction, option.prediction.settings
        table.add_row(
            option.label,
            *(str(value) for value in (s.every, s.fragments, s.delay, s.streams)),
            _used(plan, option),
            _days(p.wall_s),
            format_bytes(p.bytes_per_day),
            f"{option.penalty:+.1%}",
        )
    return table


def _used(plan: Plan, option: Option) -> str:
    """Utilisation, with its range where runs have been learnt from; data-parallel is none of their settings."""
    p = option.prediction
    if plan.learned is None or p.settings.every == 1:
        return f"{p.utilisation:.1%}"
    found = plan.learned.of(plan.job, plan.link, p.settings)
    return f"{found.utilisation:.1%} ({found.low:.0%} to {found.high:.0%})"


def data_parallel(plan: Plan) -> Option:
    """An fp32 all-reduce after each step, nothing hidden."""
    settings = Settings(every=1, codec=FP32, streams=plan.choice.best.prediction.settings.streams)
    return Option(prediction=predict(plan.job, plan.link, settings), penalty=0.0, label="data-parallel (DDP)")


def what_if_table(text: str) -> Table:
    """Gbit/s for 95 % utilisation, ours beside the paper's. Raises ConfigError for a list that can't be read."""
    sizes = parse_sizes(text)
    table = Table(
        title="Gbit/s for 95 % utilisation", title_justify="left", box=SIMPLE_HEAD, pad_edge=False,
        caption="in brackets: Streaming DiLoCo's own figure (arXiv 2501.18512)", caption_justify="left",
    )  # fmt: skip
    table.add_column("method")
    rows = [needed(size) for size in sizes]
    for row in rows:
        table.add_column(format_count(row.parameters), justify="right", no_wrap=True)
    for method in rows[0].gbit:
        cells = []
        for row in rows:
            paper = row.paper_gbit.get(method)
            cells.append(f"{row.gbit[method]:.3g}" + ("" if paper is None else f" ({paper:g})"))
        table.add_row(method, *cells)
    return table


def _days(duration_s: float) -> str:
    return f"{duration_s / 86400:,.1f} days" if duration_s >= 2 * 86400 else format_seconds(duration_s)
