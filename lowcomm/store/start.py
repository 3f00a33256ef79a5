"""The start of a run: snapshot 0, then `run.json`, which makes the run exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lowcomm.store import keys, text
from lowcomm.store.chain_state import ChainState
from lowcomm.store.create import create
from lowcomm.store.objects import Objects
from lowcomm.store.rules import ChainRules
from lowcomm.store.run_file import ARITHMETIC, RunFile
from lowcomm.store.snapshot import SnapshotWriter
from lowcomm.types import ConfigError, PayloadError


def start_run(
    objects: Objects,
    state: ChainState,
    rules: ChainRules,
    inc: str,
    make: Callable[[SnapshotWriter], RunFile],
    back_off: Callable[[int], None],
) -> RunFile:
    """Store version 0 (weights are stored, never made again from the seed) and create the run.

    make: gives `run.json` for the snapshot that is stored (`writer.announced`). Raises ConfigError where the prefix
    holds another run already, StoreError, and what `back_off(k)` raises after the k-th vain try.
    """
    if (there := read_run(objects)) is not None:
        _same(there, rules, objects.where)
        return there
    writer = SnapshotWriter(state, inc, rules, objects.part_bytes)
    run = make(writer)
    tries = 0
    while not writer.go(objects):
        back_off(tries)
        tries += 1
    raw = run.write()
    held = create(objects, keys.RUN, raw, back_off)
    if held != raw:
        raise ConfigError(_other(objects.where, "it was created at this moment"))
    return run


def read_run(objects: Objects) -> RunFile | None:
    """`run.json`; None: no run is there. Raises StoreError, and ConfigError where it is none."""
    raw = objects.get_range(keys.RUN, 0, text.MOST_BYTES + 1)
    if raw is None:
        return None
    try:
        return RunFile.read(raw)
    except PayloadError as error:
        raise ConfigError(
            f"{objects.where}/{keys.RUN} can't be read ({error}). Fix: join with the version of lowcomm that started it"
        ) from error


def _same(there: RunFile, rules: ChainRules, where: str) -> None:
    if there.run_id != rules.run_id:
        raise ConfigError(_other(where, f"run {there.run_id}"))


def _other(where: str, which: str) -> str:
    return f"store = {where!r} holds another run already ({which}). Fix: lowcomm join it, or give an empty prefix"


def rules_of(run: RunFile, like: ChainRules) -> ChainRules:
    """The rules of a stored run; codec, aggregator and outer optimizer are those of `like`, as they are code.

    Raises ConfigError where the codec's settings or the arithmetic are not those of the run.
    """
    if run.arithmetic != ARITHMETIC:
        raise ConfigError(
            f"arithmetic = {run.arithmetic!r} of the run is not {ARITHMETIC!r}, which this version has. Fix: take the "
            "version of lowcomm that started it"
        )
    found = dataclasses.replace(
        like,
        run_id=run.run_id,
        layouts=run.layouts,
        stale=run.stale,
        keep=run.keep,
        blocks=run.data.get("blocks") if run.data.get("kind") == "shared" else None,
        lease_blocks=run.lease_blocks,
        target_tokens=run.target_tokens,
    )
    if found.codec_name != run.codec:
        raise ConfigError(
            f"codec = {found.codec_name!r} is not that of the run, {run.codec!r}. Fix: take its version of lowcomm"
        )
    return found
