"""`lowcomm sweep`: a grid of model size, islands and H, each cell a simulated run; then the scaling law through them.

Every cell sees the same tokens: `batch` sequences per step are shared out over the islands. A cell that is done is not
repeated, so that an interrupted sweep goes on with the same command.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowcomm.config import RunConfig
from lowcomm.config_check import check
from lowcomm.config_file import check_resumable
from lowcomm.island import IslandConfig
from lowcomm.model import SHAPES
from lowcomm.types import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is swept. Sizes are presets or hidden widths (of the recipe's preset)."""

    sizes: tuple[str, ...]
    hold_out: tuple[str, ...]
    """Sizes that are run but not fitted: the law predicts them."""
    islands: tuple[int, ...]
    every: tuple[int, ...]
    seeds: tuple[int, ...]
    batch: int | None
    """Sequences per inner step over all islands; None: those of the recipe's one island, times the most islands."""
    out: Path


@dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One run of the sweep."""

    name: str
    size: str
    held_out: bool
    config: RunConfig

    @property
    def islands(self) -> int:
        """Number of islands."""
        return self.config.islands or 1

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        path = self.config.directory / "summary.json"
        return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("status") == "done"


def plan_cells(base: RunConfig, grid: Grid) -> list[SweepCell]:
    """The cells, small ones first. Raises ConfigError for the first that could not run; starts nothing."""
    for name, values in (("sizes", grid.sizes), ("islands", grid.islands), ("every", grid.every)):
        require(bool(values), name, values, "one value or more", f"pass --{name}, separated by commas")
    for name in ("sizes", "hold_out", "islands", "every", "seeds"):
        values = getattr(grid, name)
        require(len(set(values)) == len(values), name, values, "each value once", "remove the repeated one")
    require(bool(grid.seeds), "seeds", grid.seeds, "one value or more", "pass --seeds 0")
    both = sorted(set(grid.sizes) & set(grid.hold_out))
    require(not both, "hold_out", both, "sizes that are not fitted", "name other sizes")
    for islands in grid.islands:
        require(islands >= 1, "islands", islands, "1 or more", "pass --islands 1,2,4")
    batch = grid.batch if grid.batch is not None else base.data.batch_size * max(grid.islands)
    for islands in grid.islands:
        fits = batch >= islands and batch % islands == 0
        require(fits, "batch", batch, f"a multiple of {islands}, as the islands share it", "pass --batch")
    cells: list[SweepCell] = []
    sized = [(size, size in grid.hold_out) for size in (*grid.sizes, *grid.hold_out)]
    for seed, (size, held_out), islands, every in itertools.product(grid.seeds, sized, grid.islands, grid.every):
        name = f"{size}-M{islands}-H{every}-seed{seed}"
        config = _cell_config(base, name, size, islands, every, seed, batch, grid.out / name)
        check(config, islands)
        config = dataclasses.replace(config, island=IslandConfig(size=1))  # as a run stores it
        if (config.directory / "config.json").exists():
            _check_same(config, islands, name)
        cells.append(SweepCell(name=name, size=size, held_out=held_out, config=config))
    return cells


def _check_same(config: RunConfig, islands: int, name: str) -> None:
    try:
        check_resumable(config, islands)
    except ConfigError as error:
        cause = str(error).partition(". Fix:")[0].replace("the run that is to be resumed", "what this sweep asks for")
        raise ConfigError(f"cell {name} was run before, but {cause}. Fix: pass another --out, or remove it") from error


def _cell_config(
    base: RunConfig, name: str, size: str, islands: int, every: int, seed: int, batch: int, directory: Path
) -> RunConfig:
    preset, width = (size, None) if size in SHAPES else (base.model.preset, _width(size))
    return dataclasses.replace(
        base,
        name=name,
        islands=islands,
        seed=seed,
        transport="simulated",
        batched=islands > 1,
        run_dir=directory,
        tensorboard=False,
        model=dataclasses.replace(base.model, preset=preset, width=width, directory=None),  # pyright: ignore[reportArgumentType]
        data=dataclasses.replace(base.data, batch_size=batch // islands),
        sync=dataclasses.replace(base.sync, every=every),
        checkpoint=dataclasses.replace(base.checkpoint, export=False),
    )


def _width(size: str) -> int:
    ok = size.isascii() and size.isdecimal()
    require(ok, "sizes", size, f"a hidden width or one of {', '.join(SHAPES)}", "pass --sizes 32,48,nano")
    return int(size)


def check_data(cells: Sequence[SweepCell]) -> None:
    """Raise ConfigError if the text does not reach for all islands; once per number of islands."""
    from lowcomm.data import build_data

    for islands in sorted({c.islands for c in cells if not c.done}):
        config = next(c.config for c in cells if c.islands == islands)
        data = build_data(config.data, islands, config.seed)
        for island in range(islands):
            data.shard(island)


def run_cell(cell: SweepCell) -> int:
    """Train one cell, from its newest checkpoint if it has one; returns the exit code of the run."""
    from lowcomm import checkpoint
    from lowcomm.trainer import train

    config = cell.config
    if (config.directory / "config.json").exists():
        if checkpoint.names(config.directory / "checkpoints"):
            config = dataclasses.replace(config, resume=True)
        else:
            shutil.rmtree(config.directory)  # of the same configuration, and stopped before anything was saved
    return train(config)


def row(cell: SweepCell) -> dict[str, Any]:
    """What the sweep's result says about a cell that is done."""
    summary = json.loads((cell.config.directory / "summary.json").read_text(encoding="utf-8"))
    keys = ("parameters", "val_loss", "val_bpb", "tokens", "steps", "rounds", "bytes_sent", "wall_s")
    return {
        "size": cell.size,
        "held_out": cell.held_out,
        "islands": cell.islands,
        "H": cell.config.sync.every,
        "seed": cell.config.seed,
        **{k: summary[k] for k in keys},
    }
