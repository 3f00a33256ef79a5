"""The command `lowcomm sweep`: arguments, the order of a sweep, its result as JSON and as tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lowcomm.config import RunConfig
from lowcomm.plan.scaling_law import Law, Point, fit
from lowcomm.report.units import format_count, format_seconds
from lowcomm.run.run_dir import write_json
from lowcomm.sweep.grid import Grid, SweepCell, check_data, plan_cells, row, run_cell
from lowcomm.types import ConfigError

Row = dict[str, Any]
Parse = Callable[[RunConfig, Sequence[str], str], RunConfig]


def sweep(options: argparse.Namespace, rest: Sequence[str], arguments: Sequence[str], parse: Parse) -> int:
    """Run the command; returns the exit code. rest: the recipe's own flags, which `parse` reads; arguments: all."""
    from lowcomm.recipe import load

    grid = Grid(
        sizes=options.sizes,
        hold_out=options.hold_out,
        islands=options.islands,
        every=options.every,
        seeds=options.seeds,
        batch=options.batch,
        out=options.out,
    )
    base = parse(load(options.recipe), rest, f"lowcomm sweep {options.recipe}")
    cells = plan_cells(base, grid)
    console = Console()
    if options.dry_run:
        console.print(_cell_table(cells))
        return 0
    check_data(cells)
    for number, cell in enumerate(cells, start=1):
        if cell.done:
            continue
        console.print(f"cell {number}/{len(cells)}: {cell.name}", highlight=False, markup=False)
        code = run_cell(cell)
        if code != 0:
            return code
    rows = [row(cell) for cell in cells]
    console.print(_runs_table(rows))
    result = {"command": ["lowcomm", "sweep", *arguments], "rows": rows, **law_of(rows, options.confidence)}
    write_json(grid.out / "sweep.json", result)
    _show_law(console, result)
    console.print(f"result: {grid.out / 'sweep.json'}", soft_wrap=True, highlight=False, markup=False)
    return 0


def law_of(rows: Sequence[Row], confidence: float) -> dict[str, Any]:
    """The fit through the rows that are not held out, and what it says about those that are; JSON-able.

    A sweep too small for a fit has its rows all the same: then `fit` is None and `no_fit` says why.
    """
    points = [_point(r) for r in rows if not r["held_out"]]
    try:
        law = fit(points, confidence=confidence)
    except ConfigError as error:
        return {"fit": None, "no_fit": str(error), "held_out": []}
    described = {
        "constants": {name: asdict(interval) for name, interval in law.constants.items()},
        "relative_spread": law.spread,
        "runs": law.runs,
        "confidence": confidence,
    }
    held_out = [_predicted(law, r) for r in rows if r["held_out"]]
    return {"fit": described, "no_fit": None, "held_out": held_out}


def _point(found: Row) -> Point:
    return Point(parameters=found["parameters"], islands=found["islands"], every=found["H"], loss=found["val_loss"])


def _predicted(law: Law, found: Row) -> Row:
    predicted = law.predict(found["parameters"], found["islands"], found["H"])
    return {
        **{k: found[k] for k in ("size", "parameters", "islands", "H", "seed")},
        "measured": found["val_loss"],
        "predicted": predicted.value,
        "low": predicted.low,
        "high": predicted.high,
        "relative_error": predicted.value / found["val_loss"] - 1,
        "inside": predicted.low <= found["val_loss"] <= predicted.high,
    }


def _cell_table(cells: Sequence[SweepCell]) -> Table:
    table = _table("Cells", f"{len(cells)} runs, {sum(c.done for c in cells)} of them done")
    for column in ("cell", "use"):
        table.add_column(column)
    for column in ("sequences per island", "steps", "tokens", "state"):
        table.add_column(column, justify="right")
    for cell in cells:
        data, steps = cell.config.data, cell.config.steps * cell.config.inner.accumulation
        tokens = steps * data.batch_size * data.seq_len * cell.islands
        use = "predict" if cell.held_out else "fit"
        state = "done" if cell.done else "to do"
        table.add_row(cell.name, use, str(data.batch_size), str(cell.config.steps), format_count(tokens), state)
    return table


def _runs_table(rows: Sequence[Row]) -> Table:
    table = _table("Runs", "loss: validation, nats per token")
    for column in ("size", "parameters", "islands", "H", "seed", "loss", "bits/byte", "wall"):
        table.add_column(column, justify="right")
    for r in rows:
        size = r["size"] + (" *" if r["held_out"] else "")
        numbers = (format_count(r["parameters"]), str(r["islands"]), str(r["H"]), str(r["seed"]))
        table.add_row(size, *numbers, f"{r['val_loss']:.4f}", f"{r['val_bpb']:.4f}", format_seconds(r["wall_s"]))
    return table


def _show_law(console: Console, result: dict[str, Any]) -> None:
    described = result["fit"]
    if described is None:
        console.print(f"no fit: {result['no_fit']}", soft_wrap=True, highlight=False, markup=False)
        return
    letters = {"alpha": "N^alpha", "beta": "M^beta", "gamma": "H^gamma"}
    law = " ".join(["loss = A", *(text for name, text in letters.items() if name in described["constants"])])
    level = f"{described['confidence']:.0%}"
    caption = f"{described['runs']} runs; N parameters, M islands, H steps; spread {described['relative_spread']:.2%}"
    table = _table(law, caption)
    for column in ("constant", "value", f"{level} from", "to"):
        table.add_column(column, justify="right")
    for name, interval in described["constants"].items():
        table.add_row(name, *(f"{interval[k]:.4f}" for k in ("value", "low", "high")))
    console.print(table)
    if result["held_out"]:
        console.print(_held_out_table(result["held_out"], level))


def _held_out_table(held_out: Sequence[Row], level: str) -> Table:
    inside = sum(r["inside"] for r in held_out)
    table = _table("Held out (*)", f"{inside} of {len(held_out)} measured losses are inside of their interval")
    for column in ("parameters", "islands", "H", "predicted", f"{level} from", "to", "measured", "error"):
        table.add_column(column, justify="right")
    for r in held_out:
        numbers = (f"{r[k]:.4f}" for k in ("predicted", "low", "high", "measured"))
        row_of = (format_count(r["parameters"]), str(r["islands"]), str(r["H"]), *numbers)
        table.add_row(*row_of, f"{r['relative_error']:+.2%}")
    return table


def _table(title: str, caption: str) -> Table:
    return Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
