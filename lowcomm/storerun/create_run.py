"""Makes a run exist, once: the probe, snapshot 0, then `run.json`, without which there is no run."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lowcomm.config import RunConfig
from lowcomm.config_file import to_dict
from lowcomm.config_read import check_readable
from lowcomm.data import Data
from lowcomm.run.assembly import build_models
from lowcomm.store import keys
from lowcomm.store.chain_state import first_state
from lowcomm.store.commit import Announced
from lowcomm.store.create import create
from lowcomm.store.objects import Objects
from lowcomm.store.probe import probe
from lowcomm.store.rules import ChainRules
from lowcomm.store.run_file import RunFile
from lowcomm.store.snapshot import SnapshotWriter
from lowcomm.storerun.blocks import BlockSizes
from lowcomm.storerun.facts import Facts, parted
from lowcomm.storerun.plan import choice_of, lease_blocks, policy_of, rules_of, shares_data, tokens_per_step
from lowcomm.types import ConfigError, PayloadError


def stored_form(config: RunConfig) -> RunConfig:
    """The configuration without what is this machine's own. Raises ConfigError for what others can't read back."""
    data = dataclasses.replace(config.data, cache_dir=type(config.data)().cache_dir)
    common = dataclasses.replace(
        config, data=data, store=None, run_dir=None, resume=False, threads=None, device="auto", transport="collective",
        tensorboard=True, batched=False,
    )  # fmt: skip
    check_readable(common)
    return common


def create_run(objects: Objects, config: RunConfig, data: Data, islands: int) -> RunFile:
    """Create the run of this configuration, or take the one that is there.

    islands: the number that its text and learning rate are cut for. Raises ConfigError where the store holds another
    run, StoreError where it fails the probe or can't be written.
    """
    common = stored_form(config)
    if (raw := objects.get(keys.RUN)) is not None:
        return same_run(raw, common, objects.where)
    model = build_models(config, data, 1, torch.device("cpu"))[0]
    facts = Facts.of(common, model, data, islands)
    run, rules = _first(common, facts, islands)
    proof = probe(objects, run.run_id)
    writer = SnapshotWriter(first_state(parted(common, model), rules), run.run_id, rules, objects.part_bytes)
    tries = 0
    while not writer.go(objects):
        back_off(objects)(tries)
        tries += 1
    run = dataclasses.replace(run, snapshot=writer.announced, probe=proof.as_json())
    return same_run(create(objects, keys.RUN, run.write(), back_off(objects)), common, objects.where)


def same_run(raw: bytes, common: RunConfig, where: str) -> RunFile:
    """The run that is there. Raises ConfigError if it is not of this configuration."""
    run = read_run(raw, where)
    ours, theirs = to_dict(common), dict(run.configuration)
    if theirs != ours:
        key = next((k for k in ours if ours[k] != theirs.get(k)), "a field")
        raise ConfigError(
            f"store = {where!r} holds another run ({theirs.get('name')}, {run.run_id[:8]}): {key} differs. Fix: "
            "name another place, or `lowcomm join` it as it is"
        )
    return run


def read_run(raw: bytes | None, where: str) -> RunFile:
    """`run.json`. Raises ConfigError for none, or one that can't be read."""
    if raw is None:
        raise ConfigError(
            f"store = {where!r} holds no run. Fix: start one with `lowcomm train RECIPE --store URL`, or correct the "
            "address"
        )
    try:
        return RunFile.read(raw)
    except PayloadError as error:
        raise ConfigError(
            f"store = {where!r} holds a run.json that is damaged or of another format ({error}). Fix: restore it, or "
            "install the version of lowcomm that wrote it"
        ) from error


def back_off(objects: Objects) -> Callable[[int], None]:
    """Waits longer from time to time. Raises what trouble the store has after a minute."""
    give_up = time.monotonic() + 60.0

    def wait(tries: int) -> None:
        if time.monotonic() > give_up:
            raise objects.trouble or ConfigError(
                f"store = {objects.where!r}: what was written is not read back after a minute. Fix: see that it is one "
                "place, without a cache in between"
            )
        time.sleep(min(objects.poll_first_s * 1.5**tries, objects.poll_most_s))

    return wait


def _first(config: RunConfig, facts: Facts, islands: int) -> tuple[RunFile, ChainRules]:
    """`run.json` but for snapshot and probe, and the rules that follow from it."""
    choice, policy = choice_of(config), policy_of(config, islands)
    policy.check()
    shared = shares_data(config)
    tokens = config.steps * islands * tokens_per_step(config)
    run = RunFile(
        run_id=secrets.token_hex(16),
        configuration=to_dict(config),
        fragments=facts.fragments,
        codec="",
        snapshot=Announced(version=0, key="", sha256=""),
        tokenizer_sha256=facts.tokenizer_sha256,
        data=facts.data,
        stale=choice.max_staleness,
        keep=choice.keep,
        lease_blocks=lease_blocks(BlockSizes.of(config, choice, islands), policy) if shared else 1,
        target_tokens=None if shared else tokens,
        policy=policy.as_json(),
    )
    rules = rules_of(config, run)
    rules.check()
    return dataclasses.replace(run, codec=rules.codec_name), rules


def paths_of(value: object) -> list[Path]:
    """Files and directories that a configuration names, patterns as far as they are fixed; not its cache."""
    found: list[Path] = []
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return found
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if isinstance(inner, Path) and field.name not in ("cache_dir", "run_dir", "log"):
            found.append(inner)
        elif isinstance(inner, str) and field.name in ("glob", "data_files"):
            found.append(Path(inner.split("*")[0].split("?")[0].split("[")[0] or "."))
        elif isinstance(inner, str) and field.name == "name" and Path(inner).is_dir() and "/" in inner:
            found.append(Path(inner))
        else:
            found += paths_of(inner)
    return found
