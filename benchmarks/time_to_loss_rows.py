"""From curves of validation loss to the rows of benchmarks/results/time_to_loss.json.

    wall_s = steps * plain_step_s + syncs * sync_s,    sync_s = H (step_s - plain_step_s)

of the method's row in benchmarks/results/headline.json on that link, without the seconds in which a thread had no core.
For a period that does not change this is steps * step_s; for one that grows, its syncs are counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.headline_methods import BASE, Size
from benchmarks.time_to_loss_methods import ALONE, ENTRANTS, Entrant

SHARES = (0.25, 0.5, 1.0)
"""Of DDP's tokens: its losses there are what the others run until."""
LINK_RTT_MS = 50.0
NOT_REACHED, NOT_RUN_ON = "not reached", "not run on"
NOT_TIMED = "not timed: python -m benchmarks.headline --part timing"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation of a run."""

    step: int
    bpb: float
    """Bits per byte of the validation text."""
    syncs: int
    sent_bytes: float | None
    """Of an island, on average; None: not counted by the run."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Evaluations of one run, in order."""

    length: float
    """Of the run, in DDP's."""
    points: tuple[Point, ...]

    def first_at(self, target_bpb: float) -> Point | None:
        """The first evaluation at or below the target; None: there is none."""
        return next((p for p in self.points if p.bpb <= target_bpb), None)


def simulated_curve(directory: Path, length: float, every_step: bool) -> Curve | None:
    """Of a `lowcomm simulate` run that is done; every_step: a sync follows each inner step."""
    summary = directory / "summary.json"
    if not summary.exists() or json.loads(summary.read_text(encoding="utf-8"))["status"] != "done":
        return None
    lines = (json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    points = tuple(
        Point(
            step=line["step"],
            bpb=line["val_bpb"],
            syncs=line["step"] if every_step else line["round"],
            sent_bytes=line["bytes_sent"],
        )
        for line in lines
        if line["event"] == "eval"
    )
    return Curve(length=length, points=points)


def peer_curve(directory: Path, length: float, every: int) -> Curve | None:
    """Of another package's whole run that is done."""
    path = directory / "quality.json"
    if not path.exists():
        return None
    done = json.loads(path.read_text(encoding="utf-8"))
    last = {"step": done["steps"], "val_bpb": done["val_bpb"]}
    points = tuple(
        Point(step=e["step"], bpb=e["val_bpb"], syncs=e["step"] // every, sent_bytes=None)
        for e in [*done["curve"], last]
    )
    return Curve(length=length, points=points)


def reached(curves: Iterable[Curve], target_bpb: float) -> tuple[Point, Curve] | None:
    """Where the target is reached in the fewest steps, over runs of all lengths."""
    found = [(p, c) for c in curves if (p := c.first_at(target_bpb)) is not None]
    return min(found, key=lambda pair: pair[0].step, default=None)


def timings(result: Mapping[str, Any], preset: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of headline.json by method and link: of one model, of the links with a round trip."""
    chosen = [r for r in result["rows"] if r["preset"] == preset and r["rtt_ms"] == LINK_RTT_MS]
    return {(r["method"], r["link"]): r for r in sorted(chosen, key=lambda r: -r["seed"])}


def wall_s(entrant: Entrant, point: Point, timed: Mapping[str, Any] | None, base: Mapping[str, Any]) -> float | None:
    """Seconds to a point of a curve; None: its method was never timed. base: DDP's timings on the link."""
    if entrant.timed_as is None:
        return point.step * float(base["net_plain_step_s"])
    if timed is None:
        return None
    sync_s = timed["H"] * (timed["net_step_s"] - timed["net_plain_step_s"])
    return float(point.step * timed["net_plain_step_s"] + point.syncs * sync_s)


def sent(entrant: Entrant, point: Point, timed: Mapping[str, Any] | None) -> float | None:
    """Bytes of an island to a point: as its run counted them, else the interface's per step."""
    if point.sent_bytes is not None or entrant.timed_as is None:
        return point.sent_bytes or 0.0
    return None if timed is None else timed["bytes_sent"] / timed["steps"] * point.step


def rows_of(
    curves: Mapping[tuple[str, int], Sequence[Curve]], headline: Mapping[str, Any], size: Size
) -> list[dict[str, Any]]:
    """One row per method, seed, link and target. curves: by method and seed."""
    timed, rows = timings(headline, size.preset), list[dict[str, Any]]()
    for entrant in ENTRANTS:
        for seed in sorted({s for name, s in curves if name == entrant.name and (BASE, s) in curves}):
            own, ddp = curves[entrant.name, seed], curves[BASE, seed][0]
            equal = bpb_at(own, size.steps)
            alone = bpb_at(curves.get((ALONE, seed), ()), size.steps)
            shared = {
                "preset": size.preset,
                "method": entrant.name,
                "islands": entrant.islands,
                "seed": seed,
                "bpb_at_equal_tokens": equal,
                "recovered": recovered(equal, alone, ddp.points[-1].bpb),
                "longest": max(c.length for c in own),
            }
            for line in (line for line in size.lines if line.rtt_ms == LINK_RTT_MS):
                link = {"link": line.name, "rate_mbit": line.rate_mbit, "rtt_ms": line.rtt_ms}
                at = (timed.get((entrant.timed_as or "", line.name)), timed.get((BASE, line.name)))
                for share in SHARES:
                    rows.append({**shared, **link, **_target(entrant, own, ddp, at, share, size, line.rate_mbit)})
    return with_ratios(rows)


def _target(
    entrant: Entrant,
    own: Sequence[Curve],
    ddp: Curve,
    at: tuple[dict[str, Any] | None, dict[str, Any] | None],
    share: float,
    size: Size,
    rate_mbit: float,
) -> dict[str, Any]:
    """What one method needed for DDP's loss at `share` of its tokens. at: timings of the method and of DDP."""
    target = next(p for p in ddp.points if p.step >= share * size.steps).bpb
    found, (timed, base) = reached(own, target), at
    row: dict[str, Any] = {"target_share": share, "target_bpb": target, "steps_to_target": None}
    row |= {"length": None, "wall_s_to_target": None, "bytes_to_target": None, "wall_s_from": _why_none(entrant, own)}
    if found is None:
        return row
    point, curve = found
    time_s = None if base is None else wall_s(entrant, point, timed, base)
    full_s = None
    if base is not None and (ddp_point := ddp.first_at(target)) is not None:
        full_s = ddp_point.step * (32 * size.parameters / (rate_mbit * 1e6) + base["net_plain_step_s"])
    return {
        **row,
        "steps_to_target": point.step,
        "syncs_to_target": point.syncs,
        "length": curve.length,
        "wall_s_to_target": time_s,
        "wall_s_from": NOT_TIMED if time_s is None else "steps and syncs x seconds of headline.json",
        "bytes_to_target": sent(entrant, point, timed),
        "speedup_over_full_link": None if time_s is None or full_s is None else full_s / time_s,
    }


def _why_none(entrant: Entrant, own: Sequence[Curve]) -> str:
    """Why a target has no step: all that may be spent was, or longer runs were not made."""
    return NOT_REACHED if max(c.length for c in own) >= entrant.lengths[-1] else NOT_RUN_ON


def bpb_at(curves: Iterable[Curve], step: int) -> float | None:
    """At the end of a run of exactly `step` steps; None: none was made."""
    ends = [c.points[-1] for c in curves]
    return next((p.bpb for p in ends if p.step == step), None)


def recovered(bpb: float | None, alone: float | None, ddp: float) -> float | None:
    """Share of what DDP gains over one island alone that a method gains; None where one of them was not run."""
    return None if bpb is None or alone is None or alone == ddp else (alone - bpb) / (alone - ddp)


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with speedup_over_ddp and bytes_ratio_to_ddp, and the speed-up over DDP with its own inner optimizer."""

    def of(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        key = {k: row[k] for k in ("link", "seed", "target_share")}
        return next((r for r in rows if r["method"] == name and key.items() <= r.items()), {})

    bases = {e.name: e.base for e in ENTRANTS}
    made = []
    for row in rows:
        ddp, same = of(row, BASE), of(row, bases[row["method"]])
        ratios = {
            "speedup_over_ddp": ratio(ddp.get("wall_s_to_target"), row["wall_s_to_target"]),
            "speedup_over_ddp_same_inner": ratio(same.get("wall_s_to_target"), row["wall_s_to_target"]),
            "bytes_ratio_to_ddp": ratio(ddp.get("bytes_to_target"), row["bytes_to_target"]),
        }
        made.append({**row, **ratios})
    return made


def ratio(over: float | None, under: float | None) -> float | None:
    """None where one is not known or nothing was spent."""
    return over / under if over is not None and under else None
