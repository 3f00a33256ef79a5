"""The order of a run: inner steps, syncs, evaluation, checkpoints, stop, summary. Nothing else knows it."""

from __future__ import annotations

import math

import torch

from lowcomm.config import RunConfig
from lowcomm.federated import report_clients
from lowcomm.run.assembly import Run, World, assemble, preflight
from lowcomm.run.clock import start_together
from lowcomm.run.finale import Evaluation, evaluate, export, holding_global_weights, write_summary
from lowcomm.run.journal import Journal
from lowcomm.run.privacy_spent import Counts
from lowcomm.run.resume import load_newest, save_now, start_files
from lowcomm.transport.base import Transport
from lowcomm.types import CheckpointError, LowcommError, SyncError

DONE, FAILED, STOPPED = 0, 1, 3
"""Exit codes; 2 (bad input) is given by the command line before anything starts."""


class DivergedError(LowcommError):
    """The training loss is NaN or infinite."""


def train(config: RunConfig, world: World | None = None, transport: Transport | None = None) -> int:
    """Run to the end (0) or to a stop with everything saved (3). Raises LowcommError when it fails.

    Under torchrun, call it in every process; alone, it simulates all islands if transport is "simulated". transport:
    what joins this process, one island of a `relayed` world, to the others.
    """
    world = World.from_environment() if world is None else world
    config, data = preflight(config, world)
    run = assemble(config, data, world, transport)
    run.stop.install()
    run.sync.state.exchange.leaving = lambda: run.stop.signal is not None
    try:
        start_files(run)
        if config.resume:
            load_newest(run)
        else:
            run.start = start_together(run.members.everyone, 0.0)
        return Loop(run).run_to_end()
    finally:
        run.stop.restore()
        run.progress.close()
        run.metrics.close()
        run.members.close()
        if run.lock is not None:
            run.lock.close()


class Loop:
    """One process's part of the run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.journal = Journal(run)
        self.save_failure: str | None = None

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
        except SyncError:
            if not self.is_finite():  # a checkpoint of these weights would hide the good one before it
                write_summary(run, "failed", self.journal.time_s())
                raise
            self.stop("failed" if run.stop.signal is None else "stopped")
            if run.stop.signal is not None:
                return STOPPED
            raise
        except LowcommError:
            write_summary(run, "failed", self.journal.time_s())
            raise
        wall_s = self.journal.time_s()
        result = self.evaluate()
        if run.config.eval.clients:
            report_clients(run)
        try:
            export(run)
        except CheckpointError as error:
            self.save_failure = str(error)
        write_summary(run, "done" if sync.step >= run.config.steps else "budget spent", wall_s, result)
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

    def is_finite(self) -> bool:
        """Whether every local weight is a finite number."""
        return all(bool(t.isfinite().all()) for replica in self.run.sync.replicas for t in replica.held.values())

    def step(self) -> None:
        """One inner step on every local island."""
        run, sync = self.run, self.run.sync
        step = sync.step
        average = sync.next_action.average_gradients
        places = [shard.state_dict() for shard in run.shards] if average else []
        states = [(island.cpu_rng, island.cuda_rng) for island in run.islands]
        due = [i for i, r in enumerate(sync.replicas) if r.steps <= step]  # others were stopped ahead of these
        train = [i for i in due if not sync.rests(i)]
        batches = {i: [run.shards[i].next_batch() for _ in range(run.config.inner.accumulation)] for i in train}
        losses = run.batched.backward(batches) if run.batched is not None else {}
        for i in due:
            if i not in batches:
                sync.rest(i)
                continue
            island = run.islands[i]
            loss = losses[i] if i in losses else island.backward(batches[i])
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss of island {sync.transport.local[i]} is {loss} at inner step {step + 1}: the run stops. "
                    "Fix: lower --inner.optimizer.lr or --sync.outer.lr, and --resume from the last checkpoint"
                )
            self.journal.losses[i] += loss
            self.journal.trained[i] += 1
            sync.count_tokens(run.members.share(island.told_tokens(batches[i])), i)
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
            run.batched.update(step, due)
        elif average:
            for i in due:
                run.islands[i].update(step)

    def after_step(self) -> None:
        """Log, evaluate and save where they are due."""
        run, sync = self.run, self.run.sync
        gradients = sync.state.action_at(sync.step).average_gradients
        boundary = self.journal.synced or (gradients and sync.step % sync.state.spec.every == 0)
        self.journal.synced = False
        if sync.step - self.journal.logged_step >= run.config.log_every or sync.step == run.config.steps:
            self.journal.log()
        every = run.config.eval.every
        if every is not None and boundary and sync.step < run.config.steps and self._passed(every):
            self.evaluate()
        rounds = run.config.checkpoint.every_rounds
        if 0 in sync.transport.lost and not run.world.relayed:
            raise SyncError("island 0, which writes what the run leaves behind, is gone: the run stops")
        if rounds is not None and boundary and sync.rounds_done % rounds == 0 and not sync.transport.lost:
            self.save(f"{sync.rounds_done:06d}")

    def _passed(self, every: int) -> bool:
        """Whether a multiple of `every` lies in the steps of the period that just ended."""
        sync = self.run.sync
        return sync.step // every > max(0, sync.step - sync.state.pace.every) // every

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

    def stop(self, status: str) -> int:
        """Save inside the round, say so, and leave. Raises CheckpointError if a stop could not be saved."""
        run = self.run
        name = f"{run.sync.rounds_done:06d}-stop{run.resumes}"
        asked = "a signal to another rank" if run.config.checkpoint.stop_at_step != run.sync.step else "stop_at_step"
        cause = run.stop.signal or (asked if status == "stopped" else "a sync failed")
        saved = self.save(name)
        if saved:
            note = f"{status} ({cause}) at inner step {run.sync.step}, saved as {name}; continue with --resume"
            run.progress.note(note)
            self.journal.note(note)
        write_summary(run, status if saved else "failed", self.journal.time_s())
        if status == "stopped" and not saved:
            raise CheckpointError(f"stopped ({cause}), but not saved: {self.save_failure}")
        return STOPPED

    def save(self, name: str) -> bool:
        """Save; a full disk does not stop training, but the run won't end with exit code 0."""
        try:
            save_now(self.run, name, self.journal.time_s())
        except CheckpointError as error:
            self.save_failure = str(error)
            self.run.progress.note(f"warning: {error}")
            self.journal.note(f"warning: {error}")
            return False
        return True

    def evaluate(self) -> Evaluation:
        """Validation loss of the global weights."""
        run, start_s = self.run, self.journal.time_s()
        with holding_global_weights(run.sync.state):
            result = evaluate(run)
        run.progress.evaluated(bits_per_byte=result.bits_per_byte)
        if run.world.writes:
            losses = {"val_loss": result.loss, "val_bpb": result.bits_per_byte, **result.consensus}
            self.journal.write(None, "eval", {**losses, "start_s": start_s})
        return result
