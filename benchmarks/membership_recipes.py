"""What benchmarks/membership.py runs: two clients with little text, which the whole tiny model reads many times.

Their text is pieces of an installed package's sources, shuffled before some of them are held out: an attack would also
tell one file from another that neither was trained on.
"""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

from lowcomm.aggregate import Mean
from lowcomm.config import CheckpointConfig, EvalConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, Packages, TextFiles
from lowcomm.island import AdamW, InnerConfig
from lowcomm.model import ModelConfig
from lowcomm.outer import SGD
from lowcomm.privacy import ExampleGaussian
from lowcomm.tiny_base import TinyBase

CORPUS = Path("runs/bench/membership-corpus")
PIECE = 400
"""Characters of a piece."""


def write_corpus(pieces: int = 60) -> None:
    """So many pieces of each client's text, one file each; the same in every call."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    for name in ("numpy", "rich"):
        read = Packages(names=(name,), max_bytes_each=200_000).read(CORPUS)
        text = "".join(d.text.decode() for d in [*read.documents, *(read.validation or ())])
        cut = [text[i : i + PIECE] for i in range(0, len(text) - PIECE + 1, PIECE)]
        (CORPUS / name).mkdir(parents=True)
        for i, piece in enumerate(random.Random(0).sample(cut, pieces)):
            (CORPUS / name / f"{i:03}.txt").write_text(piece, encoding="utf-8")


def plain() -> RunConfig:
    """Without privacy: the model learns its text by heart."""
    return RunConfig(
        name="membership-plain",
        islands=2,
        steps=160,
        threads=1,
        data=DataConfig(
            source=TextFiles(glob=str(CORPUS / "*" / "*.txt")),
            sharding="by_folder",
            seq_len=32,
            batch_size=16,
            validation_fraction=0.5,
        ),
        model=ModelConfig(origin=TinyBase()),
        inner=InnerConfig(optimizer=AdamW(lr=3e-3, weight_decay=0.0)),
        sync=SyncConfig(every=20, outer=SGD(lr=1.0), aggregator=Mean(by="uniform"), quorum=1.0),
        eval=EvalConfig(clients=True, membership=True),
        checkpoint=CheckpointConfig(export=False),
    )


def noise_low() -> RunConfig:
    """Half of the clip."""
    return _private(0.5)


def noise_middle() -> RunConfig:
    """Twice the clip."""
    return _private(2.0)


def noise_high() -> RunConfig:
    """Eight times the clip."""
    return _private(8.0)


def _private(noise_multiplier: float) -> RunConfig:
    base = plain()
    mechanism = ExampleGaussian(clip=0.5, noise_multiplier=noise_multiplier, seed=0)
    return replace(base, name="membership-private", sync=replace(base.sync, privacy=mechanism))
