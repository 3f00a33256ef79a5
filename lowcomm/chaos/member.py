"""What runs in a forked process: the run's creation, a member with its faults, one of another version, the proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from lowcomm import cli
from lowcomm.chaos.acts import Acts
from lowcomm.chaos.inject import Injector
from lowcomm.chaos.plan import Fault
from lowcomm.chaos.record import Recorder
from lowcomm.chaos.trouble import Trouble
from lowcomm.config import RunConfig
from lowcomm.data import build_data
from lowcomm.store.open import open_objects
from lowcomm.storerun import joining
from lowcomm.storerun.create_run import create_run
from lowcomm.storerun.plan import shares_data

Work = Callable[[Path], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """What all processes of a run are told. They get it as it is, forked: nothing of it lies in a file or variable."""

    faults: tuple[Fault, ...]
    events: Path
    """Directory of files that say which faults have come."""
    seed: int
    real_full: bool
    """Whether a real disk is filled."""


def create(config: RunConfig, url: str) -> Work:
    """Make the run exist."""

    def work(_: Path) -> int:
        islands = config.islands or 1
        data = build_data(config.data, islands if shares_data(config) else 1, config.seed)
        create_run(open_objects(url, make=True), config, data, islands)
        return 0

    return work


def join(arguments: Sequence[str], scene: Scene, island: int | None) -> Work:
    """Be a member; island None: without faults of its own, but in the trouble that all have."""

    def work(record: Path) -> int:
        trouble = Trouble(scene.events, scene.seed + (0 if island is None else 1 + island))
        trouble.install()
        faults = () if island is None else scene.faults
        Injector(
            faults, -1 if island is None else island, scene.events, recorder=Recorder(record),
            act=Acts(trouble, real_full=scene.real_full), trouble=trouble,
        ).install()  # fmt: skip
        return cli.main(arguments)

    return work


def join_as_another_version(arguments: Sequence[str]) -> Work:
    """Ask to join with another arithmetic than the run's."""

    def work(_: Path) -> int:
        joining.ARITHMETIC = "another-arithmetic"
        return cli.main(arguments)

    return work


def prove(url: str) -> Work:
    """`lowcomm verify`."""
    return lambda _: cli.main(["verify", url])
