"""The order of a run: inner steps, syncs, evaluation, checkpoints, stop, summary. Nothing else knows it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from lowcomm.assembly import Run, World, assemble, preflight
from lowcomm.clock import start_together
from lowcomm.config import RunConfig
from lowcomm.deadline import Late, describe
from lowcomm.federated import report_clients
from lowcomm.finale import Evaluation, evaluate, export, holding_global_weights, write_summary
from lowcomm.privacy_spent import privacy_spent
from lowcomm.resume import load_newest, save_now, start_files
from lowcomm.sync import SyncReport
from lowcomm.types import CheckpointError, LowcommError, SyncError

DONE, FAILED, STOPPED = 0, 1, 3
"""Exit codes; 2 (bad input) is given by the command line before anything starts."""


class DivergedError(LowcommError):
    """The training loss is NaN or infinite."""


def train(config: RunConfig, world: World | None = None) -> int:
    """Run to the end (0) or to a stop with everything saved (3). Raises LowcommError when it fails.

    Under torchrun, call it in every process; alone, it simulates all islands if transport is "simulated".
    """
    world = World.from_environment() if world is None else world
    config, data = preflight(config, world)
    run = assemble(config, data, world)
    run.stop.install()
    try:
        start_files(run)
        if config.resume:
            load_newest(run)
        else:
            run.start = start_together(run.sync.transport, 0.0)
        return Loop(run).run_to_end()
    finally:
        run.stop.restore()
        run.progress.close()
        run.metrics.close()
        run.sync.transport.close()
        if run.lock is not None:
            run.lock.close()


class Loop:
    """One process's part of the run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.synced = False
        self.save_failure: str | None = None
        self.losses = [0.0] * len(run.islands)
        self.logged_step = run.sync.step
        self.logged_s, self.logged_gradients_s = time.monotonic(), 0.0
        run.sync.listeners.append(self.on_sync)
        run.sync.deadlines.listeners.append(self.on_late)

    def run_to_end(self) -> int:
        """Train, finish, evaluate, export, summarise; returns the exit code."""
        run, sync = self.run, self.run.sync
        try:
            if sync.pending:
                sync.sync(sync.pending)
            while sync.step < run.config.steps:
                self.step()
                self.after_step()
                if self.should_stop():
                    return self.stop("stopped")
            sync.finish()
        except SyncError:
            if not self.is_finite():  # a checkpoint of these weights would hide the good one before it
                write_summary(run, "failed", self.time_s())
                raise
            self.stop("failed" if run.stop.signal is None else "stopped")
            if run.stop.signal is not None:
                return STOPPED
            raise
        except LowcommError:
            write_summary(run, "failed", self.time_s())
            raise
        wall_s = self.time_s()
        result = self.evaluate()
        if run.config.eval.clients:
            report_clients(run)
        try:
            export(run)
        except CheckpointError as error:
            self.save_failure = str(error)
        write_summary(run, "done", wall_s, result)
        if self.save_failure is not None:
            raise CheckpointError(f"the run is done, but a save failed on the way: {self.save_failure}")
        if run.metrics.failure is not None:
            raise CheckpointError(f"the run is done, but metrics.jsonl is cut short: {run.metrics.failure}")
        return DONE

    def is_finite(self) -> bool:
        """Whether every local weight is a finite number."""
        return all(bool(p.isfinite().all()) for island in self.run.islands for p in island.params)

    def step(self) -> None:
        """One inner step on every local island."""
        run, sync = self.run, self.run.sync
        step = sync.step
        average = sync.next_action.average_gradients
        places = [shard.state_dict() for shard in run.shards] if average else []
        states = [(island.cpu_rng, island.cuda_rng) for island in run.islands]
        due = [i for i, r in enumerate(sync.replicas) if r.steps <= step]  # others were stopped ahead of these
        batches = {i: [run.shards[i].next_batch() for _ in range(run.config.inner.accumulation)] for i in due}
        losses = run.batched.backward(batches) if run.batched is not None else {}
        for i in due:
            island = run.islands[i]
            loss = losses[i] if i in losses else island.backward(batches[i])
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss of island {sync.transport.local[i]} is {loss} at inner step {step + 1}: the run stops. "
                    "Fix: lower --inner.optimizer.lr or --sync.outer.lr, and --resume from the last checkpoint"
                )
            self.losses[i] += loss
            sync.count_tokens(sum(targets.numel() for _, targets in batches[i]), i)
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
        gradients = sync.action_at(sync.step).average_gradients
        boundary = self.synced or (gradients and sync.step % sync.every == 0)
        self.synced = False
        if sync.step - self.logged_step >= run.config.log_every or sync.step == run.config.steps:
            self.log()
        every = run.config.eval.every
        if every is not None and boundary and sync.step < run.config.steps and self._passed(every):
            self.evaluate()
        rounds = run.config.checkpoint.every_rounds
        if rounds is not None and boundary and sync.rounds_done % rounds == 0:
            self.save(f"{sync.rounds_done:06d}")

    def _passed(self, every: int) -> bool:
        """Whether a multiple of `every` lies in the steps of the period that just ended."""
        sync = self.run.sync
        return sync.step // every > max(0, sync.step - sync.pace.every) // every

    def should_stop(self) -> bool:
        """Whether a signal came or the step to stop at is reached (not at the very end)."""
        at = self.run.config.checkpoint.stop_at_step
        step = self.run.sync.step
        return step < self.run.config.steps and (self.run.stop.signal is not None or (at is not None and step == at))

    def stop(self, status: str) -> int:
        """Save inside the round, say so, and leave. Raises CheckpointError if a stop could not be saved."""
        run = self.run
        name = f"{run.sync.rounds_done:06d}-stop{run.resumes}"
        cause = run.stop.signal or ("stop_at_step" if status == "stopped" else "a sync failed")
        saved = self.save(name)
        if saved:
            note = f"{status} ({cause}) at inner step {run.sync.step}, saved as {name}; continue with --resume"
            run.progress.note(note)
            self.write(None, "note", {"note": note})
        write_summary(run, status if saved else "failed", self.time_s())
        if status == "stopped" and not saved:
            raise CheckpointError(f"stopped ({cause}), but not saved: {self.save_failure}")
        return STOPPED

    def save(self, name: str) -> bool:
        """Save; a full disk does not stop training, but the run won't end with exit code 0."""
        try:
            save_now(self.run, name, self.time_s())
        except CheckpointError as error:
            self.save_failure = str(error)
            self.run.progress.note(f"warning: {error}")
            self.write(None, "note", {"note": f"warning: {error}"})
            return False
        return True

    def on_sync(self, report: SyncReport) -> None:
        """Log a sync on each local island, and whoever was left out."""
        run = self.run
        self.synced = True
        for i, island in enumerate(run.sync.transport.local):
            self.write(
                i,
                "sync",
                {
                    "sync_s": report.seconds_s,
                    "blocked_s": report.blocked_s,
                    "delta_norm": _finite(report.delta_norms[island]),
                    "fragment": report.round.fragments[0],
                    "launched_s": None if report.launched is None else report.launched - run.start,
                    "launch_s": report.launch_s,
                    "start_s": report.began - run.start,
                    "exchange_s": report.exchange_s,
                    "transfer_s": report.transfer_s,
                    "exchanged_bytes": report.exchanged_bytes[i],
                    "needed_bytes_per_s": report.needed_bytes_per_s,
                    "aggregation_error": report.aggregation_error,
                },
            )
        for island, why in report.dropped.items():
            note = f"island {island} was left out of round {report.round.index}: {why}"
            run.progress.note(f"warning: {note}")
            self.write(None, "note", {"note": note})
        for note in report.notes:
            self.write(None, "note", {"note": note})
        spent = privacy_spent(run.sync.codec, sum(f.numel for f in run.sync.fragments), run.sync.round)
        if spent is not None:
            values = f"{spent['epsilon_per_round']:.4g} this round, {spent['epsilon_total']:.4g} in all"
            self.write(None, "note", {"note": f"privacy: epsilon {values}, at delta {spent['delta']:g}"})
        run.progress.synced(seconds_s=report.seconds_s, sent_bytes=run.sync.transport.sent_bytes[0])

    def on_late(self, late: Late) -> None:
        """Say that an exchange missed its deadline, and why, on each local island."""
        note = describe(late)
        values = {"fragment": late.fragment, "waited_s": late.waited_s, "cause": late.cause, "note": note}
        for i, island in enumerate(self.run.sync.transport.local):
            self.write(i, "deadline", {**values, "round": late.round.index})
            self.run.progress.warn(late.cause, f"warning: island {island}: {note}")

    def log(self) -> None:
        """One line per local island with the means since the last one."""
        run, sync = self.run, self.run.sync
        steps = max(1, sync.step - self.logged_step)
        step_s = (time.monotonic() - self.logged_s) / steps
        for i, island in enumerate(run.islands):
            lr, norm = island.lr(sync.step - 1), _finite(island.grad_norm)
            values = {"loss": self.losses[i] / steps, "step_s": step_s, "lr": lr, "grad_norm": norm}
            self.write(i, "step", {**values, "blocked_s": (sync.gradients_s - self.logged_gradients_s) or None})
        share = sync.transport.islands / len(sync.replicas)  # islands elsewhere do the same work
        tokens = sum(r.tokens for r in sync.replicas) * share
        run.progress.stepped(
            step=sync.step,
            round=sync.round,
            loss=self.losses[0] / steps,
            tokens=tokens,
            tokens_per_s=tokens / max(1, sync.step) / step_s,
        )
        self.losses = [0.0] * len(run.islands)
        self.logged_step, self.logged_s, self.logged_gradients_s = sync.step, time.monotonic(), sync.gradients_s

    def evaluate(self) -> Evaluation:
        """Validation loss of the global weights."""
        run, start_s = self.run, self.time_s()
        with holding_global_weights(run.sync):
            result = evaluate(run)
        run.progress.evaluated(bits_per_byte=result.bits_per_byte)
        if run.world.rank == 0:
            self.write(None, "eval", {"val_loss": result.loss, "val_bpb": result.bits_per_byte, "start_s": start_s})
        return result

    def write(self, local: int | None, event: str, values: Mapping[str, float | str | None]) -> None:
        """One metrics line of a local island, or of the whole run (None)."""
        sync = self.run.sync
        chosen = range(len(sync.replicas)) if local is None else [local]
        share = sync.transport.islands / len(sync.replicas)  # islands elsewhere do the same work
        self.run.metrics.write(
            {
                "event": event,
                "island": None if local is None else sync.transport.local[local],
                "round": sync.round,
                "step": sync.step,
                "tokens": int(sum(sync.replicas[i].tokens for i in chosen) * (share if local is None else 1)),
                "bytes_sent": sum(sync.transport.sent_bytes[i] for i in chosen) // len(chosen),
                "bytes_received": sum(sync.transport.received_bytes[i] for i in chosen) // len(chosen),
                "time_s": round(self.time_s(), 6),
                **values,
            }
        )

    def time_s(self) -> float:
        """Seconds of this run so far, over all resumes, on the monotonic clock that all islands share."""
        return time.perf_counter() - self.run.start


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
