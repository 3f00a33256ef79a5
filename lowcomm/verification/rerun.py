"""Rounds of a run computed again, from its start or from one of its checkpoints, in a directory of their own.

All islands are simulated in this process, which gives the bits of real ones; threads are those of the run. What comes
of it is the transcript that an honest machine of this kind would have written.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from lowcomm import checkpoint
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig
from lowcomm.config_read import read_config
from lowcomm.membership import World
from lowcomm.report.progress import Progress
from lowcomm.run.assembly import assemble, preflight
from lowcomm.run.cadence import agree_on_start
from lowcomm.run.resume import load_newest
from lowcomm.trainer import Loop
from lowcomm.types import ConfigError
from lowcomm.verification.checks import check_can_rerun
from lowcomm.verification.machine import check_same, machine_of
from lowcomm.verification.operators import Operators
from lowcomm.verification.transcript import Transcript, read_all


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A run directory as an auditor reads it."""

    directory: Path
    config: RunConfig
    transcripts: tuple[Transcript, ...]

    @property
    def islands(self) -> int:
        """How many take part."""
        return len(self.transcripts)

    @property
    def threads(self) -> int:
        """CPU threads of an island."""
        return int(self.transcripts[0].machines[-1]["threads"])

    @property
    def on_gpu(self) -> bool:
        """Whether its models lay on a GPU."""
        return str(self.transcripts[0].machines[0].get("device", "")).startswith("cuda")

    def starts(self) -> dict[int, str]:
        """Checkpoints at the beginning of a round that are whole here, by the inner steps done until then."""
        root = self.directory / "checkpoints"
        tables = [checkpoint.verified(root, k) for k in range(self.islands)]
        names = [n for n in checkpoint.names(root) if n.isdecimal() and len({t.get(n) for t in tables}) == 1]
        found: dict[int, str] = {}
        for name in (n for n in names if n in tables[0]):
            found[int(checkpoint.load(root, name, 0)["island"][1]["step"])] = name
        return found


def open_recorded(directory: Path) -> Recorded:
    """Read a run directory. Raises ConfigError where nothing in it can be audited, CheckpointError where it is torn."""
    path = directory / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no JSON"
        raise ConfigError(f"{path} can't be read ({why}). Fix: name a run directory, runs/NAME") from error
    config = read_config(values)
    check_can_rerun(config)
    if config.islands is None:
        raise ConfigError(f"{path} does not say how many islands there were. Fix: name the directory of a run")
    return Recorded(directory=directory, config=config, transcripts=tuple(read_all(directory, config.islands)))


def check_kind(*runs: Recorded) -> None:
    """Raise ConfigError unless this machine and those of the runs are of one kind."""
    told = {f"{r.directory}, island {t.island}": m for r in runs for t in r.transcripts for m in t.machines}
    on_gpu = runs[0].on_gpu
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError("the run was on a GPU, and there is none here. Fix: audit it on a machine of its kind")
    here = machine_of(torch.device("cuda" if on_gpu else "cpu"), 1)
    check_same({"this machine": here, **told})


def rerun(run: Recorded, start: str | None, until_step: int, operators: Operators | None = None) -> list[Transcript]:
    """The transcripts of all islands from a checkpoint (None: the start) until `until_step` inner steps.

    operators: what watches one step of one island.
    """
    with tempfile.TemporaryDirectory(prefix="lowcomm-audit-") as place:
        directory = Path(place) / "run"
        config = dataclasses.replace(
            run.config,
            run_dir=directory,
            resume=start is not None,
            transport="simulated",
            device="cuda" if run.on_gpu else "cpu",
            threads=run.threads,
            tensorboard=False,
            log_every=run.config.steps,
            eval=EvalConfig(),
            checkpoint=CheckpointConfig(every_rounds=None, every_s=None, export=False),
        )
        if start is not None:
            directory.mkdir(mode=0o700)
            shutil.copytree(run.directory / "checkpoints" / start, directory / "checkpoints" / start, symlinks=True)
            shutil.copy(run.directory / "config.json", directory / "config.json")
        _train(config, until_step, operators)
        return read_all(directory, run.islands)


def _train(config: RunConfig, until_step: int, operators: Operators | None) -> None:
    world = World(rank=0, size=1, local_rank=0, local_size=1)
    config, data = preflight(config, world)
    run = assemble(config, data, world)
    run.progress = Progress(name=config.name, steps=config.steps, enabled=False)
    try:
        if not (config.resume and load_newest(run)):
            run.start = agree_on_start(run.members.everyone, 0.0)
        assert run.record is not None
        run.record.start(run.directory, run.sync.state, run.shards, run.progress.note)
        if operators is not None:
            operators.watch(run.islands, run.sync.replicas, run.record)
        loop = Loop(run)
        while run.sync.step < min(until_step, config.steps):
            loop.step()
            loop.after_step()
        if until_step >= config.steps:
            run.sync.finish()
    finally:
        if operators is not None:
            operators.close()
        run.close()
