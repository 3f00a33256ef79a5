"""The order of a run: inner steps, syncs, evaluation, checkpoints, stop, summary. Nothing else knows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from lowcomm import checkpoint
from lowcomm.config import RunConfig
from lowcomm.federated import report_clients
from lowcomm.report.privacy import spent_in_words
from lowcomm.run.assembly import Run, World, assemble, preflight
from lowcomm.run.cadence import Cadence, agree_on_start
from lowcomm.run.divergence import DivergedError as DivergedError
from lowcomm.run.divergence import set_aside
from lowcomm.run.export import export
from lowcomm.run.finale import Evaluation, evaluate, with_global_weights, write_summary
from lowcomm.run.journal import Journal, saves_without
from lowcomm.run.judging import judge_of, needs_judge
from lowcomm.run.privacy_spent import Counts, privacy_spent
from lowcomm.run.reading import read_ahead
from lowcomm.run.resume import is_finite, load_newest, save_now, start_files
from lowcomm.run.sharpness import average_direction_sharpness
from lowcomm.run.signals import tell_stopped, who_asked, who_stopped
from lowcomm.transport.base import Transport
from lowcomm.types import CheckpointError, DataError, FencedError, LowcommError, StoppedError, SyncError, UnusableError

DONE, FAILED, STOPPED = 0, 1, 3
"""Exit codes; 2 (bad input) is given by the command line before anything starts."""


def train(
    config: RunConfig,
    world: World | None = None,
    transport: Transport | None = None,
    show: Callable[[Path], None] | None = None,
) -> int:
    """Run to the end (0) or to a stop with everything saved (3). Raises LowcommError when it fails.

    Under torchrun, call it in every process; alone, it simulates all islands if transport is "simulated". transport:
    what joins this process, one island of a `relayed` world, to the others. show: called with the run directory of a
    run that is done, where this process wrote its summary.
    """
    world = World.from_environment() if world is None else world
    config, data = preflight(config, world)
    run = assemble(config, data, world, transport)
    run.stop.install()
    if needs_judge(config.sync.exchange):
        run.sync.state.exchange.judge = judge_of(run)
    run.sync.state.exchange.leaving = lambda: run.stop.signal is not None
    try:
        start_files(run)
        if not (config.resume and load_newest(run)):
            run.start = agree_on_start(run.members.everyone, 0.0)
            run.progress.note(data.described())
        if run.record is not None:
            run.record.start(run.directory, run.sync.state, run.shards, run.progress.note)
        loop = Loop(run)
        run.members.may_lose()
        code = loop.run_to_end()
        run.members.leave("done" if code == DONE else "stopped")
    except BaseException as error:
        run.members.leave(f"failed: {type(error).__name__}")
        raise
    finally:
        run.stop.restore(leaving=world.under_torchrun)
        run.close()
    if show is not None and run.writes and code == DONE:
        show(run.directory)
    return code


class Loop:
    """One process's part of the run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.journal = Journal(run)
        self.cadence = Cadence(run.config.checkpoint.every_s, run.members.everyone)
        run.sync.listeners.append(lambda _: self.cadence.synced(run.sync.wait))
        self.save_failure: str | None = None
        state = run.sync.state
        self.boundary = state.step - (state.step - state.pace.since) % state.pace.every
        """Inner step of the last end of a round, at which an evaluation that was due by then has been made."""

    def run_to_end(self) -> int:
        """Train, finish, evaluate, export, summarise; returns the exit code."""
        run, sync = self.run, self.run.sync
        try:
            if sync.pending:
                sync.sync(sync.pending)
            while sync.step < run.config.steps and not self.budget_is_spent():
                self.step()
                self.after_step()
                if self.should_stop():
                    return self.stop("stopped")
            sync.finish()
        except FencedError:
            raise  # nothing is to be written any more
        except SyncError as error:
            if not is_finite(run):  # a checkpoint of these weights would hide the good one before it
                write_summary(run, "failed", self.journal.time_s())
                raise
            asked = isinstance(error, StoppedError) or run.stop.signal is not None
            asked = asked or who_stopped(sync.transport.islands) is not None
            self.stop("stopped" if asked else "failed", error)
            if asked:
                return STOPPED
            raise
        except DataError as error:
            self.stop("failed", error)
            raise
        except LowcommError:
            write_summary(run, "failed", self.journal.time_s())
            raise
        self.journal.note_skipped()
        wall_s = self.journal.time_s()
        result = self.evaluate()
        if run.config.eval.clients:
            report_clients(run)
        try:
            export(run)
        except CheckpointError as error:
            self.save_failure = str(error)
        write_summary(run, "done" if sync.step >= run.config.steps else "budget spent", wall_s, result)
        if (spent := privacy_spent(sync.state, run.ledger)) is not None:
            run.progress.note(spent_in_words(spent))
        if self.save_failure is not None:
            raise CheckpointError(f"the run is done, but a save failed on the way: {self.save_failure}")
        if run.metrics.failure is not None:
            raise CheckpointError(f"the run is done, but metrics.jsonl is cut short: {run.metrics.failure}")
        return DONE

    def budget_is_spent(self) -> bool:
        """Whether what comes next would cost more epsilon than the run may: the next round, or, in one, the next step.

        Equal on every island, as it follows from steps, releases and the size of the data.
        """
        run, sync = self.run, self.run.sync
        if run.ledger is None or run.ledger.mechanism.budget is None:
            return False
        between = all(r.unsynced(i) == 0 for r in sync.replicas for i in range(len(sync.state.fragments)))
        ahead = min(sync.state.pace.every if between else 1, run.config.steps - sync.step)
        if not run.ledger.exceeds(Counts.of(sync.state, releases=1, steps=ahead)):
            return False
        spent = f"the privacy budget, epsilon {run.ledger.mechanism.budget:g}, is spent"
        note = f"{spent}: the run ends at inner step {sync.step}"
        run.progress.note(note)
        self.journal.note(note)
        return True

    def step(self) -> None:
        """One inner step on every local island."""
        run, sync = self.run, self.run.sync
        step = sync.step
        average = sync.next_action.average_gradients
        places = [shard.state_dict() for shard in run.shards] if average else []
        states = [(island.cpu_rng, island.cuda_rng) for island in run.islands] if average else []
        due = [i for i, r in enumerate(sync.replicas) if r.steps <= step]  # others were stopped ahead of these
        train = [i for i in due if not sync.rests(i)]
        read_ahead([run.shards[i] for i in train], run.config.inner.accumulation, run.reading_mesh)
        batches = {i: [run.shards[i].next_batch() for _ in range(run.config.inner.accumulation)] for i in train}
        losses = run.batched.backward(batches) if run.batched is not None and batches else {}
        if resting := [i for i in due if i not in batches]:
            sync.rest(*resting)
        for i in train:
            island = run.islands[i]
            loss = losses[i] if i in losses else island.backward(batches[i])
            if math.isfinite(loss):
                self.journal.losses[i] += loss
                self.journal.trained[i] += 1
                sync.count_loss(loss, i)
            elif set_aside(run, self.journal, i, loss, average):
                sync.rest(i)
                continue
            sync.count_tokens(run.members.share(island.reported_tokens(batches[i])), i)
            if not average and run.batched is None:
                island.update(step)
        if average:
            try:
                sync.average_gradients()
            except SyncError:
                for shard, place in zip(run.shards, places, strict=True):
                    shard.load_state_dict(place)  # this step never happened
                for island, (cpu_rng, cuda_rng) in zip(run.islands, states, strict=True):
                    island.cpu_rng, island.cuda_rng = cpu_rng, cuda_rng
                raise
        if run.batched is not None:
            if stepping := [i for i in due if run.sync.replicas[i].steps <= step]:
                run.batched.update(step, stepping)
        elif average:
            for i in due:
                run.islands[i].update(step)

    def after_step(self) -> None:
        """Log, evaluate and save where they are due."""
        run, sync = self.run, self.run.sync
        if sync.transport.fenced is not None:
            raise sync.transport.fenced
        gradients = sync.state.action_at(sync.step).average_gradients
        boundary = self.journal.synced or (gradients and sync.step % sync.state.spec.every == 0)
        self.journal.synced = False
        if sync.step - self.journal.logged_step >= run.config.log_every or sync.step == run.config.steps:
            self.journal.log()
        every = run.config.eval.every
        if boundary:
            passed, self.boundary = every is not None and sync.step // every > self.boundary // every, sync.step
            if passed and sync.step < run.config.steps:
                self.evaluate()
        if gradients:
            self.cadence.synced(sync.wait)  # every step is a sync
        if not sync.transport.lost or saves_without(run):
            self.save_if_due(boundary, gradients)

    def save_if_due(self, boundary: bool, gradients: bool) -> None:
        """Save by the number of rounds or by the clock; boundary: the next step begins a round."""
        sync, cadence = self.run.sync, self.cadence
        rounds = self.run.config.checkpoint.every_rounds
        if boundary and (cadence.due or (rounds is not None and sync.rounds_done % rounds == 0)):
            self.save(f"{sync.rounds_done:06d}")
        elif cadence.due or (not gradients and self._part_is_due()):
            part = cadence.next_part(sync.rounds_done)
            self.save(f"{sync.rounds_done:06d}-part{self.run.resumes}-{part}")

    def _part_is_due(self) -> bool:
        """Whether this island's clock asks for a save inside the round; alike on its ranks, which save one step."""
        sync, mesh = self.run.sync, self.run.members.mesh
        if self.cadence.every_s is None or any(r.steps != sync.step for r in sync.replicas):
            return False  # after a resume some of the islands of one process may be ahead for a while
        due = self.cadence.part_is_due()
        return due if mesh is None else bool(mesh.rows(torch.tensor([due])).any())

    def should_stop(self) -> bool:
        """Whether a signal came or the step to stop at is reached (not at the very end); of an island's ranks, to any.

        They stop after the same step, or one would wait for the others in the middle of the next.
        """
        at, mesh = self.run.config.checkpoint.stop_at_step, self.run.members.mesh
        step, wanted = self.run.sync.step, self.run.stop.signal is not None
        if step >= self.run.config.steps:
            return False
        if mesh is not None:
            wanted = bool(mesh.rows(torch.tensor([wanted])).any())
        return wanted or (at is not None and step == at)

    def stop(self, status: str, error: SyncError | DataError | None = None) -> int:
        """Save inside the round, say so, and leave. Raises CheckpointError if a stop could not be saved.

        error: the failure that stops the run, unless it is only that others were told to stop before.
        """
        run, sync = self.run, self.run.sync
        name = f"{sync.rounds_done:06d}-stop{run.resumes}"
        failed = str(error) if isinstance(error, DataError) else "a sync failed"
        asked = who_asked(sync.transport.islands, run.config.checkpoint.stop_at_step == sync.step)
        asked = str(error) if isinstance(error, StoppedError) else asked
        cause = run.stop.signal or (failed if status == "failed" else asked)
        again = isinstance(error, UnusableError) and not run.sync.transport.lost  # those come back with a resume
        kind = checkpoint.UNUSABLE if again else "exchange"
        saved = self.save(name, kind if status == "failed" else None)
        if saved:
            note = f"{status} ({cause}) at inner step {run.sync.step}, saved as {name}; continue with --resume auto"
            run.progress.note(note)
            self.journal.note(note)
        if status == "stopped" and saved:
            tell_stopped(run.sync.transport.local[0], cause)
        write_summary(run, status if saved else "failed", self.journal.time_s())
        if status == "stopped" and not saved:
            raise CheckpointError(f"stopped ({cause}), but not saved: {self.save_failure}")
        return STOPPED

    def save(self, name: str, failure: str | None = None) -> bool:
        """Save; a full disk does not stop training, but the run won't end with exit code 0."""
        try:
            save_now(self.run, name, self.journal.time_s(), failure)
        except CheckpointError as error:
            self.save_failure = str(error)
            self.run.progress.note(f"warning: {error}")
            self.journal.note(f"warning: {error}")
            return False
        finally:
            self.cadence.saved()
        return True

    def evaluate(self) -> Evaluation:
        """Validation loss of the global weights."""
        run, start_s = self.run, self.journal.time_s()
        with with_global_weights(run.sync.state):
            result = evaluate(run)
        if run.config.eval.directions:
            result = replace(result, directions=average_direction_sharpness(run, result.loss))
        run.progress.evaluated(bits_per_byte=result.bits_per_byte)
        if run.writes:
            losses = {"val_loss": result.loss, "val_bpb": result.bits_per_byte, **result.consensus}
            self.journal.write(None, "eval", {**losses, "start_s": start_s})
        return result
