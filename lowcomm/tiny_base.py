"""A tiny base model to fine-tune: 0.12M parameters, trained on the standard library when it is first needed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.model import Origin

if TYPE_CHECKING:
    from lowcomm.config import RunConfig

CACHE = Path("~/.cache/lowcomm")


@dataclass(frozen=True, kw_only=True)
class TinyBase(Origin):
    """The nano Llama after some steps on one island; byte tokens."""

    steps: int = 800
    """Inner steps of 16 x 64 tokens: 800 take about ten seconds."""
    cache_dir: Path = CACHE
    """Where the trained model is kept (0.5 MB)."""

    def directory(self) -> Path:
        found = self.cache_dir.expanduser() / "models" / f"tiny-base-{self.steps}"
        if (found / "config.json").is_file():
            return found
        import torch

        from lowcomm.run.assembly import World
        from lowcomm.trainer import train

        alone = World(rank=0, size=1, local_rank=0, local_size=1)  # though this process may be one of several
        threads = torch.get_num_threads()
        found.parent.mkdir(parents=True, exist_ok=True)
        place = found.with_name(f".{found.name}-{os.getpid()}")
        try:
            train(pretraining(self.steps, place), alone)
            if not found.exists():
                (place / "export").rename(found)
        finally:
            torch.set_num_threads(threads)
            shutil.rmtree(place, ignore_errors=True)
        return found


def pretraining(steps: int, run_dir: Path) -> RunConfig:
    """How the base is trained."""
    from lowcomm.config import RunConfig, SyncConfig
    from lowcomm.data import DataConfig
    from lowcomm.model import ModelConfig
    from lowcomm.outer import SGD

    return RunConfig(
        name="tiny-base",
        islands=1,
        steps=steps,
        transport="simulated",
        device="cpu",
        threads=1,  # the same bits on machines of the same kind
        tensorboard=False,
        run_dir=run_dir,
        data=DataConfig(seq_len=64, batch_size=16, validation_sequences=64),
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=steps, outer=SGD(lr=1.0)),
    )
