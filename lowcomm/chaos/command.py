"""`lowcomm chaos`: faults on purpose, on the run of a recipe, and whether it came through them."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from lowcomm.chaos.plan import Plan
    from lowcomm.config import RunConfig

HEAVY = ("lowcomm.trainer", "lowcomm.storerun.commands.join", "transformers.models.llama.modeling_llama", "tyro")
"""Imported once, for all processes that are forked."""
DIRECTORY = Path("runs/chaos")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. Fix: see lowcomm chaos --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog="lowcomm chaos",
        usage="lowcomm chaos [PLAN] [--recipe FILE.py:FUNCTION] [--seed S] [--faults N] [--store URL] [--out DIR] ...",
        description="Run a plan of faults on real processes of a run that lives in a store, and check that its history "
        "is one, its text is trained once and its loss is that of the run without faults. Exit code 1: it is not so.",
        epilog="Other flags are the recipe's. A plan is JSON or TOML: seed, and faults with round, phase and fault; "
        "run, island and for_s may be left out.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", default=None, metavar="FILE.py:FUNCTION", help="run to try (default: a small one)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--faults", type=int, default=25, help="number of faults to draw, 1 to 10000")
    parser.add_argument("--per-run", type=int, default=8, help="faults of one run, 1 to 100, as its rounds have room")
    parser.add_argument("--for-s", type=float, default=2.0, help="seconds that a drawn fault lasts, where it does")
    parser.add_argument("--only", default=None, metavar="FAULT,...", help="draw of these faults alone")
    parser.add_argument(
        "--store", default=None, metavar="URL", help="where the runs' stores lie (default: below --out)"
    )
    parser.add_argument("--out", type=Path, default=DIRECTORY, help=f"what runs leave behind (default: {DIRECTORY})")
    parser.add_argument("--json", type=Path, default=None, help="file for the rows (default: chaos.json in --out)")
    parser.add_argument("--show", action="store_true", help="print the plan as JSON and run nothing")
    return parser


def chaos(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    words = list(arguments)
    plan = Path(words.pop(0)) if words and not words[0].startswith("-") else None  # else it would be a flag's value
    options, flags = _parser().parse_known_args(words)
    options.plan = plan
    config = _config(options, flags)
    faults = _plan(options, config)
    if options.show:
        import json

        from lowcomm.chaos.plan import as_json

        print(json.dumps(as_json(faults), indent=1))
        return 0
    for module in HEAVY:
        importlib.import_module(module)
    out = options.out.absolute()
    if (out / "calm").exists():
        for old in (*out.glob("run-*"), out / "calm"):
            shutil.rmtree(old)
    return _run(config, faults, out, options)


def _run(config: RunConfig, plan: Plan, out: Path, options: argparse.Namespace) -> int:
    from rich.console import Console

    from lowcomm.chaos.campaign import Campaign
    from lowcomm.chaos.plan import as_json
    from lowcomm.chaos.table import show
    from lowcomm.private_files import make_directory
    from lowcomm.run.run_dir import write_json

    console = Console()
    make_directory(out)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    campaign = Campaign(config=config, plan=plan, directory=out, store=options.store, say=say)
    for number in range(plan.runs):
        campaign.go(number)
    rows = [row for result in campaign.results for row in result.rows]
    failures = [line for result in campaign.results for line in result.finding.failures]
    show(rows, console)
    calm = campaign.calm
    assert calm is not None
    cpu_s = calm.cpu_s + sum(result.cpu_s for result in campaign.results)
    body = {"plan": as_json(plan), "calm": dataclasses.asdict(calm), "cpu_s": cpu_s, "failures": failures, "rows": rows}
    write_json(options.json or out / "chaos.json", body)
    survived = sum(row["survived"] for row in rows)
    say(f"{survived} of {len(rows)} faults survived in {plan.runs} runs; rows in {options.json or out / 'chaos.json'}")
    return 1 if failures else 0


def _config(options: argparse.Namespace, flags: Sequence[str]) -> RunConfig:
    """The run: of a recipe, or the small one, with its flags, over a store. Raises ConfigError."""
    from lowcomm.chaos.default_run import default_run
    from lowcomm.flags.parse import parse_flags
    from lowcomm.membership import DEFAULT_ISLANDS
    from lowcomm.recipe import load
    from lowcomm.storerun.checks import check_store_run
    from lowcomm.storerun.plan import with_store

    base = default_run() if options.recipe is None else load(options.recipe)
    config = parse_flags(base, flags, "lowcomm chaos")
    islands = DEFAULT_ISLANDS if config.islands is None else config.islands
    require(islands >= 2, "islands", islands, "2 or more", "others must be left while one is away")
    size = config.island.size or 1
    require(size == 1, "island.size", size, "1", "faults come to islands of one process")
    config = dataclasses.replace(with_store(config, options.store or "chaos"), islands=islands, store=None)
    check_store_run(dataclasses.replace(config, store=options.store or "chaos"), islands)
    return config


def _plan(options: argparse.Namespace, config: RunConfig) -> Plan:
    """The faults, checked against the run's length. Raises ConfigError."""
    from lowcomm.chaos.kinds import KINDS
    from lowcomm.chaos.plan import FIRST_ROUND, LAST_ROUNDS, draw, read_plan

    rounds, islands = config.steps // config.sync.every, config.islands or 1
    if options.plan is not None:
        plan = read_plan(options.plan)
    else:
        room = rounds - FIRST_ROUND - LAST_ROUNDS
        require(
            room >= 1, "steps", config.steps, f"{FIRST_ROUND + LAST_ROUNDS + 1} rounds or more", "pass more --steps"
        )
        require(1 <= options.faults <= 10_000, "--faults", options.faults, "1 to 10000", "25 take a minute or two")
        most = min(100, room)
        require(1 <= options.per_run <= most, "--per-run", options.per_run, f"1 to {most} here", "8 is usual")
        names = None if options.only is None else options.only.split(",")
        for name in names or ():
            require(name in KINDS, "--only", name, f"some of {', '.join(KINDS)}", "correct it")
        only = None if names is None else {name: KINDS[name].phases for name in names}
        plan = draw(
            options.seed, options.faults, islands=islands, rounds=rounds, per_run=options.per_run, for_s=options.for_s,
            only=only,
        )  # fmt: skip
    plan.check(islands, rounds)
    if options.store is not None and "://" in options.store:
        bad = next((f.fault for f in plan.faults if f.fault == "damage"), None)
        require(bad is None, "faults", bad, "no 'damage' in a bucket, whose objects nobody can change", "leave it out")
    return plan
