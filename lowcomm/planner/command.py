"""`lowcomm plan`: from a model, a link and a step time to the settings of a run, what they cost, and a recipe.

The model of time and loss is in `lowcomm.plan`; here are flags, checks and what is shown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lowcomm.flags.early import literals
from lowcomm.plan.choose import Choice, choose
from lowcomm.plan.codecs import CODECS, USUAL, Coded
from lowcomm.plan.learned import Learned, learn
from lowcomm.plan.machines import Machines, machines_for
from lowcomm.plan.runtime import Job, Link
from lowcomm.planner.inputs import Measured, Model, doctor_link, measure, model_of
from lowcomm.planner.runs import observations
from lowcomm.types import ConfigError, require

if TYPE_CHECKING:
    from rich.console import Console

TOKENS_PER_PARAMETER = 20
"""Of a run whose length is not given: that of the scaling laws that the penalty comes from."""
FINE = float("inf")


class _Parser(argparse.ArgumentParser):
    """Bad input is one line, as everywhere."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"lowcomm plan: {message}. Fix: see lowcomm plan --help")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is shown."""

    model: Model
    job: Job
    link: Link
    tokens_per_step: int
    """Of one island."""
    utilisation: float | None
    budget_s: float | None
    choice: Choice
    base_recipe: str | None
    """Recipe that the step time was measured with; the written one starts from it."""
    machines: Machines
    gpu_memory_bytes: float
    """Of one GPU."""
    recipe: Path | None
    """File that the plan is written to."""
    learned: Learned | None = None
    """From earlier runs over this link."""
    skipped: tuple[str, ...] = ()
    """Runs that could not be used, and why."""


def run_planner(arguments: Sequence[str]) -> int:
    """Print the plan, write what was asked for; returns 0. Raises ConfigError for bad input, before anything starts."""
    options = _parser().parse_args(arguments)
    from rich.console import Console

    # a pipe has no width, and 80 columns would cut the table
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if options.what_if is not None:
        from lowcomm.planner.text import what_if_table

        console.print(what_if_table(options.what_if))
        return 0
    _check(options)
    codecs = _codecs(options.codecs)
    _check_files(options)
    if options.store_rate is not None:
        return _plan_store(options, codecs, console)
    plan = make_plan(options, codecs)
    from lowcomm.planner.launch import machine_lines
    from lowcomm.planner.text import alternatives_table, summary_lines

    for line in [*summary_lines(plan), *machine_lines(plan)]:
        console.print(line, soft_wrap=True, markup=False)
    console.print(alternatives_table(plan))
    if options.html is not None:
        from lowcomm.planner.page import write_plan_page

        console.print(f"plot: {write_plan_page(plan, options.html)}", soft_wrap=True)
    if options.recipe is not None:
        from lowcomm.planner.recipe import write_recipe

        path = write_recipe(plan, options.recipe)
        console.print(f"recipe: {path}; on one machine: lowcomm train {path}:plan", soft_wrap=True)
    return 0


def _plan_store(options: argparse.Namespace, codecs: Sequence[Coded], console: Console) -> int:
    """What the run costs if it lives in a store."""
    from lowcomm.plan.store import Prices, over_store
    from lowcomm.planner.store import store_lines, store_link, store_table

    goal = options.utilisation or 0.95
    job = _job(options).job
    prices = Prices(per_gb=options.store_price, per_thousand_requests=options.store_request_price)
    rounds = over_store(job, store_link(options), prices, codecs, goal=goal, every=options.every)
    for line in store_lines(job, rounds, goal):
        console.print(line, soft_wrap=True, markup=False)
    console.print(store_table(rounds))
    return 0


@dataclass(frozen=True, kw_only=True)
class _Sized:
    """A job, and the model and tokens that it follows from."""

    job: Job
    model: Model
    tokens_per_step: int


def _job(options: argparse.Namespace) -> _Sized:
    """Read or measure model and step time."""
    measured: Measured | None = measure(options.measure) if options.measure is not None else None
    model = measured.model if measured is not None else model_of(options.parameters, options.preset, options.config)
    step_s = options.step_s if options.step_s is not None else measured.step_s if measured is not None else 0.0
    tokens_per_step = options.tokens_per_step or (measured.tokens_per_step if measured is not None else 131_072)
    tokens = options.tokens or TOKENS_PER_PARAMETER * model.parameters
    steps = max(1, round(tokens / (options.islands * tokens_per_step)))
    if options.every is not None:
        fix = "a shorter --every, or more --tokens"
        require(options.every <= steps, "--every", options.every, f"1 to {steps}, the steps of the run", fix)
    job = Job(parameters=model.parameters, islands=options.islands, step_s=step_s, steps=steps)
    return _Sized(job=job, model=model, tokens_per_step=tokens_per_step)


def make_plan(options: argparse.Namespace, codecs: Sequence[Coded]) -> Plan:
    """Read or measure what is missing, and choose."""
    link = doctor_link(options.doctor) if options.doctor is not None else _given_link(options)
    sized = _job(options)
    job, model = sized.job, sized.model
    budget_s = None if options.budget_days is None else options.budget_days * 86400
    goal = options.utilisation if options.utilisation is not None or budget_s is not None else 0.95
    known, skipped = observations(options.runs, link) if options.runs is not None else ([], [])
    learned = learn(known) if options.runs is not None else None
    choice = choose(
        job, link, utilisation=goal, budget_s=budget_s, codecs=codecs, layers=model.layers, every=options.every,
        adjust=None if learned is None else learned.adjust(job, link),
    )  # fmt: skip
    return Plan(
        model=model,
        job=job,
        link=link,
        tokens_per_step=sized.tokens_per_step,
        utilisation=goal,
        budget_s=budget_s,
        choice=choice,
        base_recipe=options.measure,
        machines=machines_for(
            job, choice.best.prediction.settings, options.gpu_memory_gb * 1e9, options.gpus_per_node, options.ranks
        ),
        gpu_memory_bytes=options.gpu_memory_gb * 1e9,
        recipe=options.recipe,
        learned=learned,
        skipped=tuple(skipped),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lowcomm plan", description="Choose H, fragments, delay, codec and streams for a link.")
    add = parser.add_argument
    add("--parameters", type=float, help="size of the model, as in 1e9")
    add("--preset", help="size of a preset: nano, tiny, 3m, 30m, 150m, 1b")
    add("--config", type=Path, metavar="DIR", help="size of the transformers model whose config.json lies there")
    add("--islands", type=int, default=2, help="replicas that train apart, 2 or more (default: 2)")
    add("--step-s", type=float, help="seconds of one inner step of an island, without any sync")
    add("--measure", metavar="RECIPE", help="measure the step, and take the model, by a few steps of FILE.py:FUNCTION")
    add("--rate-mbit", type=float, help="speed of the slowest link each way, in 10^6 bits per second")
    add("--rtt-ms", type=float, default=0.0, help="round trip of the longest link in milliseconds (default: 0)")
    add("--loss", type=float, default=0.0, help="part of the packets that is lost, 0 to below 1 (default: 0)")
    add("--doctor", type=Path, metavar="FILE", help="take the link from `lowcomm doctor --json FILE` under torchrun")
    add("--runs", type=Path, metavar="DIR", help="learn from the run directories below: runs over this same link")
    add("--utilisation", type=float, help="share of the time that must be training, 0 to 1 (default: 0.95)")
    add("--budget-days", type=float, help="longest wall-clock of the whole run in days, instead or as well")
    add("--tokens", type=float, help="tokens of the whole run, all islands (default: 20 per parameter)")
    add("--tokens-per-step", type=int, help="tokens of one inner step of one island (default: 131072, or as measured)")
    add("--gpu-memory-gb", type=float, default=80.0, help="memory of one GPU in 10^9 bytes (default: 80)")
    add("--gpus-per-node", type=int, default=8, help="GPUs of one machine (default: 8)")
    add("--ranks", type=int, help="GPUs of one island (default: as few as hold the model, its gradients and AdamW)")
    add("--every", type=int, help="fix the inner steps per round (H) instead of choosing them")
    add("--codecs", default=",".join(c.name for c in USUAL), help=f"which to consider, of {_names()}")
    add("--recipe", type=Path, metavar="FILE.py", help="write a recipe with these settings for lowcomm train")
    add("--html", type=Path, metavar="FILE", help="write a page with utilisation against bandwidth")
    from lowcomm.planner.store import add_store_flags

    add_store_flags(parser)
    add("--what-if", metavar="SIZES", help="link that data-centre sizes need, as in 1B/10B/100B; needs nothing else")
    return parser


def _names() -> str:
    return ", ".join(c.name for c in CODECS)


def _check(options: argparse.Namespace) -> None:
    sources = ("--parameters", "--preset", "--config", "--measure")
    given = [s for s in sources if getattr(options, s[2:]) is not None]
    fix = "--parameters 1e9, or --measure RECIPE.py:FUNCTION"
    require(len(given) == 1, "the model", ", ".join(given) or None, f"given by one of {', '.join(sources)}", fix)
    presets = literals("model.preset")
    ok = options.preset is None or options.preset in presets
    require(ok, "--preset", options.preset, f"one of {', '.join(presets)}", "--preset 150m")
    size = options.parameters
    require(size is None or 1e3 <= size <= 1e14, "--parameters", size, "1e3 to 1e14", "--parameters 1e9")
    require(options.islands >= 2, "--islands", options.islands, "2 or more", "one island needs no plan: --islands 2")
    timed = options.measure is not None or options.step_s is not None
    require(timed, "--step-s", None, "given, or measured", "--step-s 1.5, or --measure RECIPE.py:FUNCTION")
    linked = [options.doctor, options.rate_mbit, options.store_rate].count(None) == 2
    fix = "--rate-mbit 100 --rtt-ms 20, --doctor FILE, or --store-rate 1000"
    require(linked, "the link", options.rate_mbit, "given by one of --rate-mbit, --doctor and --store-rate", fix)
    _check_store(options)
    for name, fix in (
        ("step_s", "--step-s 1.5"),
        ("rate_mbit", "--rate-mbit 100"),
        ("budget_days", "--budget-days 7"),
        ("tokens", "--tokens 2e10"),
        ("tokens_per_step", "--tokens-per-step 131072"),
        ("gpu_memory_gb", "--gpu-memory-gb 80"),
        ("gpus_per_node", "--gpus-per-node 8"),
        ("ranks", "--ranks 8"),
        ("every", "--every 30"),
    ):
        value = getattr(options, name)
        ok = value is None or 0 < value < FINE
        require(ok, f"--{name.replace('_', '-')}", value, "a finite number above 0", fix)
    rtt, loss, goal = options.rtt_ms, options.loss, options.utilisation
    require(0 <= rtt < FINE, "--rtt-ms", rtt, "0 or more milliseconds", "--rtt-ms 50")
    require(0 <= loss < 1, "--loss", loss, "0 to below 1, a part of the packets", "--loss 0.001")
    require(goal is None or 0 < goal < 1, "--utilisation", goal, "above 0 and below 1", "--utilisation 0.95")


def _check_store(options: argparse.Namespace) -> None:
    from lowcomm.planner.store import check_store_flags

    check_store_flags(options)
    for name in ("recipe", "html", "budget_days"):
        asked = getattr(options, name)
        fix = "leave it out, or plan for --rate-mbit"
        flag = f"--{name.replace('_', '-')}"
        require(asked is None or options.store_rate is None, flag, str(asked), "left out with --store-rate", fix)


def _codecs(text: str) -> list[Coded]:
    known = {c.name: c for c in CODECS}
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        require(name in known, "--codecs", name, f"some of {_names()}", "--codecs fp32,int4")
    return [known[name] for name in dict.fromkeys(names)]


def _check_files(options: argparse.Namespace) -> None:
    recipe = options.recipe
    if recipe is not None:
        ok = recipe.suffix == ".py" and recipe.stem.isidentifier()
        require(ok, "--recipe", str(recipe), "a file name that ends in .py", "--recipe plan.py")
        require(not recipe.exists(), "--recipe", str(recipe), "a file that does not exist yet", "another name")
    for name, path in (("--recipe", recipe), ("--html", options.html)):
        ok = path is None or path.parent.is_dir()
        require(ok, name, str(path), "a file in a directory that exists", "make the directory first")


def _given_link(options: argparse.Namespace) -> Link:
    return Link(rate_bytes_per_s=options.rate_mbit * 125_000, rtt_s=options.rtt_ms / 1000, loss=options.loss)
