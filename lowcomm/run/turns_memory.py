"""What a run whose islands take turns says of its memory when it begins."""

from __future__ import annotations

from lowcomm.codec import ErrorFeedback
from lowcomm.island.inner import AdamW
from lowcomm.plan.simulated import simulation_memory
from lowcomm.report.units import format_bytes
from lowcomm.run.assembly import Run
from lowcomm.sampling import FixedSize, Poisson


def memory_in_words(run: Run) -> str | None:
    """One line for people; None: islands have a model each."""
    if not run.sync.replicas[0].shares_model:
        return None
    spec, clients = run.sync.spec, len(run.islands)
    parameters, trainable = run.islands[0].parameter_counts()
    sampling = spec.clients.sampling
    sampled = clients
    if isinstance(sampling, FixedSize):
        sampled = sampling.count
    elif isinstance(sampling, Poisson):
        sampled = round(sampling.rate * clients)
    objective = spec.clients.objective
    kept = int(isinstance(spec.codec, ErrorFeedback)) + int(objective is not None and objective.sends)
    need = simulation_memory(
        parameters=parameters,
        trainable=trainable,
        clients=clients,
        sampled=sampled,
        adamw=isinstance(run.config.inner.optimizer, AdamW),
        fresh=spec.clients.fresh_inner,
        kept=kept,
    )
    at_once = format_bytes(need.model_bytes + need.round_bytes)
    where = "on disk" if run.shelf is not None else "of memory"
    between = f", up to {format_bytes(need.kept_bytes)} {where} for what they keep" if need.kept_bytes else ""
    return f"{clients} islands take turns on one model: about {at_once} beside activations{between}"
