"""The plan as a recipe: a Python file with a function `plan` that `lowcomm train` takes."""

from __future__ import annotations

import math
from pathlib import Path

from lowcomm.model.presets import SHAPES
from lowcomm.plan.penalty import WARM_MOMENTUM, outer_lr, outer_momentum, warms_up
from lowcomm.plan.runtime import Settings
from lowcomm.planner.command import Plan
from lowcomm.planner.inputs import preset_parameters

LONGEST_SEQUENCE = 1024


def write_recipe(plan: Plan, path: Path) -> Path:
    """Write it; the caller has seen that nothing is there."""
    path.write_text(recipe_text(plan), encoding="utf-8")
    return path


def recipe_text(plan: Plan) -> str:
    """The file."""
    best = plan.choice.best
    settings = best.prediction.settings
    outer, outer_name = _outer(plan, settings)
    outer_device = '        outer_device="cpu",\n' if plan.machines.outer_device == "cpu" else ""
    schedule, schedule_name = _schedule(plan, settings)
    sync = (
        f"SyncConfig(\n"
        f"        every={settings.every},\n"
        f"        outer={outer},\n"
        f"        codec={settings.codec.recipe},\n"
        f"        schedule={schedule},\n"
        f"        streams={settings.streams},\n"
        f"{outer_device}"
        f"    )"
    )
    imports = [
        f"from lowcomm.codec import {', '.join(sorted(settings.codec.imports))}",
        f"from lowcomm.outer import {outer_name}",
        f"from lowcomm.schedule import {schedule_name}",
    ]
    p = best.prediction
    summary = (
        f"{best.label} for {plan.job.islands} islands: predicted utilisation {p.utilisation:.1%}, "
        f"loss {best.penalty:+.1%} against data-parallel."
    )
    body = _from_base(plan, sync) if plan.base_recipe is not None else _whole(plan, sync)
    more, code = body
    lines = "\n".join(sorted([*imports, *more]))
    return (
        f'"""Written by `lowcomm plan`: {best.label}."""\n\nfrom __future__ import annotations\n\n{lines}\n\n\n'
        f'def plan() -> RunConfig:\n    """{summary}"""\n{code}'
    )


def _from_base(plan: Plan, sync: str) -> tuple[list[str], str]:
    """The measured recipe with other settings of the sync."""
    imports = [
        "from dataclasses import replace",
        "from lowcomm.config import RunConfig, SyncConfig",
        "from lowcomm.recipe import load",
    ]
    code = (
        f"    sync = {sync}\n"
        f"    base = load({plan.base_recipe!r})\n"
        f'    return replace(base, name="plan", islands={plan.job.islands}, steps={plan.job.steps}, sync=sync)\n'
    )
    return imports, code


def _whole(plan: Plan, sync: str) -> tuple[list[str], str]:
    imports = [
        "from lowcomm.config import RunConfig, SyncConfig",
        "from lowcomm.data import DataConfig",
        "from lowcomm.model import ModelConfig",
    ]
    if plan.model.directory is not None:
        imports.append("from pathlib import Path")
        model = f"ModelConfig(directory=Path({str(plan.model.directory.resolve())!r}))"
    else:
        model = f'ModelConfig(preset="{plan.model.preset or nearest_preset(plan.model.parameters)}")'
    note = ""
    if plan.model.preset is None and plan.model.directory is None:
        note = "    # the preset nearest in size: give model.directory, or your own loop with the same settings\n"
    seq_len = min(LONGEST_SEQUENCE, plan.tokens_per_step)
    data = f"DataConfig(seq_len={seq_len}, batch_size={max(1, round(plan.tokens_per_step / seq_len))})"
    code = (
        f"    sync = {sync}\n{note}    model = {model}\n"
        f"    data = {data}  # point data.source at your text\n"
        f'    return RunConfig(name="plan", islands={plan.job.islands}, steps={plan.job.steps}, model=model, '
        f"data=data, sync=sync)\n"
    )
    return imports, code


def nearest_preset(parameters: float) -> str:
    """By the logarithm of the size."""
    return min(SHAPES, key=lambda name: abs(math.log(preset_parameters(name) / parameters)))


def _outer(plan: Plan, settings: Settings) -> tuple[str, str]:
    lr = f"{outer_lr(plan.job, settings):.2f}"
    if settings.codec.kind == "gathered":
        return f"SGD(lr={lr})", "SGD"
    rounds = plan.job.steps // settings.every
    if settings.delay == 0 and warms_up(rounds):
        return f"Pier(lr={lr}, momentum={WARM_MOMENTUM}, warmup_rounds={rounds // 2})", "Pier"
    return f"Nesterov(lr={lr}, momentum={outer_momentum(plan.job, settings)})", "Nesterov"


def _schedule(plan: Plan, settings: Settings) -> tuple[str, str]:
    if settings.delay >= settings.every:
        return "OneStepDelay()", "OneStepDelay"
    if settings.fragments == 1 and settings.delay == 0:
        return "EveryH()", "EveryH"
    by = "" if plan.model.layers is not None else ', by="size"'
    return f"Streaming(fragments={settings.fragments}, delay={settings.delay}{by})", "Streaming"
