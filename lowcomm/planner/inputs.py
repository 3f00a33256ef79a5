"""What the planner reads or measures: the size of a model, the slowest link of a doctor's report, a step time."""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lowcomm.plan.runtime import Link
from lowcomm.types import ConfigError, require

BYTE_VOCABULARY, LARGE_VOCABULARY = 260, 32_000
MEASURED_STEPS, WARM_STEPS = 16, 4
"""Inner steps of a measurement, and those of them that don't count."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Size of a model, and how a recipe names it."""

    parameters: int
    layers: int | None
    """Most fragments by layers; None: not known."""
    preset: str | None = None
    directory: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A short run."""

    model: Model
    step_s: float
    tokens_per_step: int


def model_of(parameters: float | None, preset: str | None, directory: Path | None) -> Model:
    """The model of whichever is given. Raises ConfigError. Only a directory loads transformers."""
    if preset is not None:
        from lowcomm.model.presets import SHAPES

        require(preset in SHAPES, "--preset", preset, f"one of {', '.join(SHAPES)}", "--preset 150m")
        return Model(parameters=preset_parameters(preset), layers=SHAPES[preset].layers, preset=preset)
    if directory is not None:
        return _from_config(directory)
    assert parameters is not None
    return Model(parameters=round(parameters), layers=None)


def preset_parameters(preset: str) -> int:
    """Of the Llama with this shape, tied embeddings counted once."""
    from lowcomm.model.presets import SHAPES

    s = SHAPES[preset]
    vocabulary = LARGE_VOCABULARY if preset == "1b" else BYTE_VOCABULARY
    embeddings = vocabulary * s.hidden * (2 if preset == "1b" else 1)
    kv = s.hidden // s.heads * s.kv_heads
    layer = 2 * s.hidden * s.hidden + 2 * s.hidden * kv + 3 * s.hidden * s.intermediate + 2 * s.hidden
    return embeddings + s.layers * layer + s.hidden


def _from_config(directory: Path) -> Model:
    file = directory / "config.json"
    fix = "give a directory saved by save_pretrained"
    require(file.is_file(), "--config", str(directory), "a directory with config.json", fix)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lowcomm.model.build import own_code

    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, OSError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        cause = own_code(directory) or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"--config = {str(directory)!r} is no causal LM: {cause}. Fix: {fix}.") from error
    count = sum(p.numel() for p in model.parameters())
    layers = getattr(config, "num_hidden_layers", None)
    return Model(parameters=count, layers=layers, directory=directory)


def doctor_link(path: Path) -> Link:
    """The slowest rate and the longest round trip among the pairs that `lowcomm doctor` measured.

    A bandwidth of the doctor includes a round trip (payload and acknowledgement), which is taken out, and protocol
    overhead, which stays. Over one connection: on a long link it may be the window that was measured.
    Raises ConfigError for a file without links.
    """
    fix = "torchrun ... -m lowcomm.cli doctor --json FILE on the machines of the run"
    try:
        links = json.loads(path.read_text(encoding="utf-8"))["links"]
        payload_bytes = float(links["payload_bytes"])
        pairs = [
            (float(mb), float(links["latency_ms"][i][j]) / 500)
            for i, row in enumerate(links["bandwidth_mb_per_s"])
            for j, mb in enumerate(row)
            if mb is not None
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ConfigError(f"--doctor = {str(path)!r} holds no measured links ({why}). Fix: {fix}.") from error
    good = bool(pairs) and payload_bytes > 0 and all(mb > 0 and rtt >= 0 for mb, rtt in pairs)
    require(good, "--doctor", str(path), "links with speeds above 0", fix)
    rates = []
    for mb, rtt_s in pairs:
        whole_s = payload_bytes / (mb * 1e6)
        rates.append(payload_bytes / max(whole_s - rtt_s, 0.1 * whole_s))
    return Link(rate_bytes_per_s=min(rates), rtt_s=max(rtt for _, rtt in pairs), efficiency=1.0)


def measure(reference: str) -> Measured:
    """A few inner steps of the recipe's model on one island, here, without a sync: its step time, size and tokens."""
    from lowcomm.config import CheckpointConfig, EvalConfig, SyncConfig
    from lowcomm.model.presets import SHAPES
    from lowcomm.recipe import load
    from lowcomm.trainer import train

    config = load(reference)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        train(
            dataclasses.replace(
                config,
                islands=1,
                steps=MEASURED_STEPS,
                transport="simulated",
                run_dir=run_dir,
                resume=False,
                log_every=1,
                tensorboard=False,
                sync=SyncConfig(every=MEASURED_STEPS),
                eval=EvalConfig(),
                checkpoint=CheckpointConfig(export=False),
            )
        )
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    steps = [line["step_s"] for line in lines if line["event"] == "step"]
    preset = None if config.model.directory is not None else config.model.preset
    layers = None if preset is None else SHAPES[preset].layers
    return Measured(
        model=Model(
            parameters=summary["parameters_trainable"], layers=layers, preset=preset, directory=config.model.directory
        ),
        step_s=statistics.median(steps[WARM_STEPS:-1]),  # the last one holds the only sync
        tokens_per_step=summary["tokens"] // summary["steps"],
    )
