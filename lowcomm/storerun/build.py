"""The parts of a member's process: one island's run, the chain's follower, and the loop that joins them."""

from __future__ import annotations

import dataclasses
import secrets
import time
from datetime import UTC, datetime

import torch

from lowcomm.config import RunConfig
from lowcomm.config_file import to_dict
from lowcomm.data import Data, build_data
from lowcomm.membership import World
from lowcomm.run.assembly import Run, assemble, build_models
from lowcomm.run.host_checks import check_host
from lowcomm.run.run_dir import check_directory, environment, hardware, write_json
from lowcomm.store.island import StoreIsland, Surroundings
from lowcomm.store.rules import Policy
from lowcomm.storerun.blocks import BlockReader, BlockSizes
from lowcomm.storerun.crew import Crew
from lowcomm.storerun.facts import Facts
from lowcomm.storerun.hands import Hands
from lowcomm.storerun.joining import Opened
from lowcomm.storerun.member import Member
from lowcomm.storerun.member_journal import MemberJournal
from lowcomm.storerun.plan import alone, choice_of, rules_of, shares_data
from lowcomm.types import ConfigError, DivergenceError
from lowcomm.version import __version__


def preflight(opened: Opened, config: RunConfig, world: World) -> Data:
    """Find bad input before anything of the run is asked for: directory, device, text, tokenizer."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda' is not allowed: torch sees no GPU here. Fix: pass --device cpu")
    check_directory(config.directory, "auto")
    check_host(config, world, on_gpu=config.device != "cpu" and torch.cuda.is_available())
    return build_data(config.data, opened.islands if shares_data(config) else 1, config.seed)


def build_hands(opened: Opened, config: RunConfig, data: Data, world: World, *, shown: bool) -> Hands:
    """Assemble what one rank trains with. Raises ConfigError, also where this machine has something else than the run.

    shown: whether this process writes on the screen.
    """
    whole = build_models(config, data, 1, torch.device("cpu"))[0]
    try:
        Facts.of(opened.config, whole, data, opened.islands).check(opened.run)
    except DivergenceError as error:
        raise ConfigError(str(error)) from error
    del whole
    run = assemble(alone(config), data, world)
    if not shown:
        run.progress.close()
        run.progress.enabled = False
    run.config = dataclasses.replace(config, islands=opened.islands)
    _start_files(run)
    run.start = time.perf_counter()
    sizes = BlockSizes.of(config, choice_of(config), opened.islands) if shares_data(config) else None
    blocks = None if sizes is None else BlockReader(data, opened.islands, sizes)
    own = run.shards[0] if sizes is None else None
    if run.members.mesh is not None:
        return Crew(run, opened.run.layouts, blocks=blocks, own=own)
    return Hands(run, blocks=blocks, own=own)


def build_member(opened: Opened, config: RunConfig, hands: Hands, *, name: str) -> Member:
    """The member that these hands belong to, on the island's first rank."""
    island = StoreIsland(
        opened.objects,
        opened.run,
        rules_of(config, opened.run),
        _policy(opened),
        Surroundings(
            name=name, clock=time.monotonic, draw=lambda: secrets.token_hex(16), wall=_wall, about=about_this_machine()
        ),
    )
    sizes = BlockSizes.of(config, choice_of(config), opened.islands) if shares_data(config) else None
    journal = MemberJournal(hands.run, opened.objects)
    return Member(config, island, hands, journal, islands=opened.islands, sizes=sizes)


def about_this_machine() -> dict[str, str | int]:
    """Versions and hardware, for people."""
    found = hardware()
    gpus = ", ".join(found["gpus"]) or "none"
    return {
        "lowcomm": __version__, "torch": torch.__version__, "cpu": str(found["cpu"])[:100], "cores": found["cores"],
        "gpus": gpus[:200],
    }  # fmt: skip


def _policy(opened: Opened) -> Policy:
    """As `run.json` has it. Raises ConfigError for one that can't be."""
    try:
        policy = Policy(**opened.run.policy, rule=choice_of(opened.config).rule)
    except TypeError as error:
        raise ConfigError(
            f"store = {opened.objects.where!r}: run.json has a policy that this version does not know ({error}). Fix: "
            "install the version of lowcomm that started the run"
        ) from error
    policy.check()
    return policy


def _start_files(run: Run) -> None:
    if run.world.local_rank == 0:
        (run.directory / "summary.json").unlink(missing_ok=True)
        write_json(run.directory / "config.json", to_dict(run.config))
        write_json(run.directory / "environment.json", environment())


def _wall() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
