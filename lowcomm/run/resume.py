"""What a run leaves on disk while it goes on, and how it comes back from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from lowcomm import checkpoint
from lowcomm.checkpoint_pruning import prune
from lowcomm.config_file import to_dict
from lowcomm.run.assembly import Run
from lowcomm.run.cadence import agree_on_start
from lowcomm.run.journal import saves_without
from lowcomm.run.run_dir import environment, write_json
from lowcomm.run.turns_memory import memory_in_words
from lowcomm.state.checkpoint import global_part, island_part, load_global, load_island
from lowcomm.state.newcomer import load_newcomer
from lowcomm.sync.overlap import relaunch
from lowcomm.transport.base import texts_of
from lowcomm.types import CheckpointError

MANY = 8
"""Islands of one process above which their files go to the disk in one flush: each takes some milliseconds."""


def start_files(run: Run) -> None:
    """Write config.json, environment.json and, of clients, partition.json (once per node)."""
    if run.world.local_rank != 0:
        return
    # a summary there is of the stop that this run resumes from: until it ends, this one has no outcome
    (run.directory / "summary.json").unlink(missing_ok=True)
    write_json(run.directory / "config.json", to_dict(run.config))
    write_json(run.directory / "environment.json", environment())
    if run.data.partition is not None:
        write_json(run.directory / "partition.json", run.data.partition)
    if (need := memory_in_words(run)) is not None:
        run.progress.note(need)


def save_now(run: Run, name: str, time_s: float, failure: str | None = None) -> None:
    """Save this process's islands, or its part of one, as checkpoint `name`. failure: what made it save, if one did.

    Raises CheckpointError; nothing older is touched.
    """
    lost = sorted(run.sync.transport.lost)
    all_stop = run.stop.signal is not None and run.sync.state.exchange.stands_for_all == "mean"  # each saves its own
    if lost and not saves_without(run) and not all_stop:
        raise CheckpointError(
            f"a checkpoint would lack the part of islands {lost}, which are gone. "
            "Fix: let the run end, or start all islands again with --resume auto"
        )
    if not is_finite(run):
        raise CheckpointError(
            f"the weights are NaN or infinite, so that checkpoint {name} was not saved. Earlier ones are intact"
        )
    root = run.directory / "checkpoints"
    gone = lost if saves_without(run) else ()
    parts = ((run.members.everyone.local[i], _parts(run, i, time_s)) for i in range(len(run.islands)))
    if len(run.islands) > MANY:
        checkpoint.save_all(root, name, parts, run.session, failure, gone, flush_each=False)
    else:
        for number, own in parts:
            checkpoint.save(root, name, number, own, run.session, failure, gone)
    if run.leads_node:
        prune(root, run.config.checkpoint.keep)


def _parts(run: Run, i: int, time_s: float) -> dict[str, checkpoint.Part]:
    """What local island i saves."""
    island, sharded = run.islands[i], run.members.mesh is not None
    tensors, values = island_part(run.sync.state, i)
    tensors["rng.cpu"] = island.cpu_rng
    if island.cuda_rng is not None:
        tensors["rng.cuda"] = island.cuda_rng
    values = {**values, "data": run.shards[i].state_dict(), "time_s": time_s, "resumes": run.resumes}
    parts: dict[str, checkpoint.Part] = {"island": (tensors, values)}
    if sharded or (run.leads_node and i == 0):  # of several ranks each has its own shard of it
        parts["global"] = global_part(run.sync.state)
    return parts


def is_finite(run: Run) -> bool:
    """Whether every local and global weight held here is a finite number."""
    held = {id(t): t for replica in run.sync.replicas for t in replica.held.values()}
    anchors = [a.weights for shared in run.sync.state.anchors for a in shared]
    return all(bool(t.isfinite().all()) for t in [*held.values(), *anchors])


def load_newest(run: Run) -> bool:
    """Load the newest checkpoint that is whole on every island and can be gone on from; whether there is one.

    Raises CheckpointError if there is none, unless config.resume is "auto".
    """
    root = run.directory / "checkpoints"
    name, stops = _newest_common(run)
    if name is None and run.config.resume == "auto":
        _start_over(run, stops)
        return False
    if name is None:
        raise CheckpointError(
            f"{root} holds no checkpoint that is whole on every island. Fix: pass --resume auto, which starts the run "
            "over in its directory, or another --run-dir"
        )
    came = [_load(run, name, i, stops) for i in range(len(run.islands))]
    counted = list(run.sync.transport.sent_bytes), list(run.sync.transport.received_bytes)
    run.start = agree_on_start(run.members.everyone, run.base_time_s)
    run.sync.transport.sent_bytes[:], run.sync.transport.received_bytes[:] = counted  # an unbroken run counts it once
    relaunch(run.sync.state)
    known = checkpoint.names(root)
    skipped = known[known.index(name) + 1 :]
    note = f"resumed from checkpoint {name} at inner step {run.sync.step}"
    failed = [n for n in skipped if n in checkpoint.failures(root, run.members.everyone.local[0])]
    torn = [n for n in skipped if n not in failed]
    note += f"; skipped as incomplete or corrupt: {', '.join(torn)}" if torn else ""
    note += f"; skipped as the failure that saved it would come again: {', '.join(failed)}" if failed else ""
    _note(run, note)
    for number, whole in zip(run.members.everyone.local, came, strict=True):
        if not whole:
            again = f"island {number} was lost when it was saved: it takes the global weights, its text begins anew"
            run.progress.warn(f"newcomer {number}", again)
    return True


def _load(run: Run, name: str, i: int, stops: int) -> bool:
    """Load local island i; whether it has a part of its own in the checkpoint. One that was lost then starts anew."""
    root, number = run.directory / "checkpoints", run.members.everyone.local[i]
    checkpoint.remove_partial(root, number)
    lost = checkpoint.lost(root).get(name, frozenset())
    whole = number not in lost
    parts = checkpoint.load(root, name, number if whole else checkpoint.first_part(root, name, lost))
    if i == 0:
        load_global(run.sync.state, parts["global"])
    tensors, values = parts["island"]
    if whole:
        load_island(run.sync.state, i, parts["island"])
        run.islands[i].cpu_rng = tensors["rng.cpu"]
        run.islands[i].cuda_rng = tensors.get("rng.cuda")
        run.shards[i].load_state_dict(values["data"])
    else:
        load_newcomer(run.sync.state, i, parts["island"])
    if run.shelf is not None:
        run.shelf.put(i)
    run.base_time_s = max(run.base_time_s, values["time_s"])
    run.resumes = max(stops, values["resumes"]) + 1
    return whole


def _note(run: Run, note: str) -> None:
    run.progress.note(note)
    if run.writes:
        line: dict[str, Any] = {"event": "note", "note": note, "step": run.sync.step, "time_s": run.base_time_s}
        run.metrics.write(line)


def _start_over(run: Run, stops: int) -> None:
    """Begin at step 0 in a directory whose run left nothing to go on from, if there was one. Nothing of it is read."""
    for number in run.members.everyone.local:
        checkpoint.remove_partial(run.directory / "checkpoints", number)
    run.resumes = stops
    if (run.directory / "metrics.jsonl").stat().st_size:
        _note(run, "no checkpoint is whole on every island: the run starts over")


def _newest_common(run: Run) -> tuple[str | None, int]:
    """The newest checkpoint whose parts are all whole and of one session, and the highest number of a stop anywhere.

    One that a failure saved which would come again counts only where there is no other.
    """
    transport = run.members.everyone
    root = run.directory / "checkpoints"
    stops = checkpoint.highest_stop(root)
    lost = {name: sorted(islands) for name, islands in checkpoint.lost(root).items()}
    rows = [
        torch.frombuffer(
            bytearray(json.dumps([checkpoint.verified(root, k), stops, checkpoint.failures(root, k), lost]).encode()),
            dtype=torch.uint8,
        )
        for k in transport.local
    ]
    tables = texts_of(transport.gather_sized(rows))
    common = _whole(tables)
    hopeless = [n for n in common if all(t[2].get(n) == checkpoint.UNUSABLE for t in tables if n in t[0])]
    preferred = [n for n in common if n not in hopeless] or common
    return (preferred[-1] if preferred else None), max(t[1] for t in tables)


def _whole(tables: Sequence[Any]) -> list[str]:
    """Checkpoints of which every island has its part, but those that were lost when it was saved; oldest first."""
    known = {name: None for table in tables for name in table[0]}
    whole: list[str] = []
    for name in sorted(known, key=checkpoint.age):
        lost = {k for table in tables for k in table[3].get(name, ())}
        sessions = {table[0].get(name) for k, table in enumerate(tables) if k not in lost}
        if len(sessions) == 1 and None not in sessions:
            whole.append(name)
    return whole
