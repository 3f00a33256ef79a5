"""The life of a member's process: train, evaluate, export, summarise; what it leaves where it stops."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from lowcomm.run.assembly import Run
from lowcomm.run.finale import Evaluation
from lowcomm.run.ranks import SUPERVISOR
from lowcomm.run.run_dir import write_json
from lowcomm.state.digest import sha256_weights
from lowcomm.storerun.crew import Crew
from lowcomm.storerun.hands import Hands
from lowcomm.storerun.member import Member
from lowcomm.types import CheckpointError, LowcommError

DONE, STOPPED = 0, 3


def live(member: Member) -> int:
    """To the run's end (0), or to a signal (3): what was contributed stays. Raises LowcommError when it fails."""
    run, journal = member.hands.run, member.journal
    if threading.current_thread() is threading.main_thread():
        run.stop.install()
    try:
        done = member.live()
        if not done:
            cause, told = run.stop.signal, member.chain.leave()
            word = "the others know" if told else "the others will notice"
            note = f"stopped ({cause}): what was contributed stays, {word}; join again to go on as somebody new"
            journal.note(note)
            _summarise(member, "stopped")
            return STOPPED
        return _finish(member)
    except LowcommError:
        _summarise(member, "failed")
        raise
    finally:
        member.hands.end()
        _close(run)


def serve(hands: Hands) -> int:
    """The life of an island's other ranks: they do what the first one does."""
    assert isinstance(hands, Crew)
    run = hands.run
    if threading.current_thread() is threading.main_thread():
        run.stop.install()  # the first rank ends it for all
    try:
        hands.serve()
        return DONE if run.stop.signal is None else STOPPED
    finally:
        _close(run)


def _finish(member: Member) -> int:
    """Evaluate and export what the chain has come to: the same bits on every member."""
    run, journal = member.hands.run, member.journal
    result = member.hands.evaluate(member.chain.weights())
    journal.evaluated({"val_loss": result.loss, "val_bpb": result.bits_per_byte})
    failure: str | None = None
    try:
        member.hands.export()
    except CheckpointError as error:
        failure = str(error)
    _summarise(member, "done", result)
    if failure is not None:
        raise CheckpointError(f"the run is done, but its export failed: {failure}")
    if run.metrics.failure is not None:
        raise CheckpointError(f"the run is done, but metrics.jsonl is cut short: {run.metrics.failure}")
    return DONE


def _summarise(member: Member, status: str, result: Evaluation | None = None) -> None:
    run, known = member.hands.run, member.chain.known
    run.sync.state.blocked_s = member.chain.blocked_s
    member.hands.summarise(status, member.journal.lines.time_s(), result)
    if not run.world.writes:
        return
    path = run.directory / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    rounds = 0 if known is None else known.fragments[0].version
    if result is not None and known is not None:  # of whole tensors, however this island's ranks share them
        layouts = member.island.rules.layouts
        whole = {
            n: v for layout, f in zip(layouts, known.fragments, strict=True) for n, v in layout.views(f.weights).items()
        }
        summary["weights_sha256"] = sha256_weights(whole)
    tokens = summary["tokens"] if known is None else known.tokens_done
    summary |= {"islands": member.islands, "tokens": tokens, "rounds": rounds}
    write_json(path, {**summary, "store": _facts(member, known is not None)})


def _facts(member: Member, healed: bool) -> Mapping[str, Any]:
    island, journal = member.island, member.journal
    return {
        "where": island.objects.where,
        "run_id": island.run.run_id,
        "incarnation": island.inc,
        "name": island.around.name,
        "version": island.version if healed else None,
        "members": len(island.members) if healed else None,
        "tokens": island.state.tokens_done if healed else None,
        "contributions": journal.used,
        "worst_staleness": journal.worst_staleness,
        "late": journal.late,
        **island.objects.counts.as_json(),
    }


def _close(run: Run) -> None:
    run.stop.restore(leaving=run.world.under_torchrun or SUPERVISOR in os.environ)
    run.progress.close()
    run.metrics.close()
    run.members.close()
    if run.lock is not None:
        run.lock.close()
