"""The part of a plan that is about machines: ranks, memory, network, and the commands that start the run."""

from __future__ import annotations

from collections.abc import Iterator

from lowcomm.plan.simulated import simulation_memory
from lowcomm.planner.command import Plan
from lowcomm.report.units import format_bytes


def machine_lines(plan: Plan) -> Iterator[str]:
    """Lines for people; the command's own are indented."""
    m, islands = plan.machines, plan.job.islands
    share = (
        {"fsdp": " that share the replica (FSDP2)", "ddp": " with a replica each (DDP)"}[m.kind] if m.ranks > 1 else ""
    )
    nodes = "1 node" if m.nodes == 1 else f"{m.nodes} nodes"
    each = f"{nodes} with {_ranks(m.ranks_per_node)}{share}"
    yield f"machines: {islands} islands, each of {each}; {islands * m.nodes} nodes in all"
    cpu = f", and {format_bytes(m.cpu_bytes)} of CPU memory for each rank" if m.cpu_bytes else ""
    yield (
        f"memory: {format_bytes(m.gpu_bytes)} of each GPU's {format_bytes(plan.gpu_memory_bytes)} for weights, "
        f"gradients, AdamW{'' if cpu else ' and the sync'}, without activations{cpu and cpu + ' for the sync'}"
    )
    if not m.fits:
        yield f"note: that leaves no room for activations: pass --ranks {2 * m.ranks}, or a larger --gpu-memory-gb"
    need = simulation_memory(
        parameters=plan.job.parameters,
        trainable=plan.job.parameters,
        clients=islands,
        sampled=islands,
        adamw=True,
    )
    total = format_bytes(need.model_bytes + need.round_bytes + need.kept_bytes)
    yield f"simulated in one process instead: {total} for islands that take turns on one model, without activations"
    yield f"network: {_network(plan)}"
    yield "start, from one machine that reaches all others by ssh (HOSTS as in launch/hosts.example):"
    yield f"  launch/ssh.sh --hosts HOSTS {' '.join(_recipe(plan))}"
    yield "or on each node, with its own K from 0 and the same private file SECRET (head -c 32 /dev/urandom | base64):"
    yield f"  {node_command(plan)}"
    if plan.recipe is None:
        yield "plan.py is written by adding --recipe plan.py to this command"


def node_command(plan: Plan) -> str:
    """The command of one node. Its rank is given, so that the ranks of an island are neighbours."""
    m, islands = plan.machines, plan.job.islands
    size = f" --island-size {m.ranks}" if m.ranks > 1 else ""
    return (
        f"launch/node.sh --nodes {islands * m.nodes} --node-rank K --ranks {m.ranks_per_node} "
        f"--master ADDRESS_OF_NODE_0 --address OWN_ADDRESS --secret SECRET --islands {islands}{size} "
        f"{' '.join(_recipe(plan))}"
    )


def _recipe(plan: Plan) -> list[str]:
    """The recipe and the flags that no launcher adds."""
    kind = ["--island.kind", plan.machines.kind] if plan.machines.ranks > 1 else []
    return [f"{plan.recipe or 'plan.py'}:plan", *kind]


def _network(plan: Plan) -> str:
    inside = "NCCL inside an island; " if plan.machines.ranks > 1 else ""
    if plan.machines.backend == "NCCL":
        return f"{inside}NCCL between islands, as the sync's state lies on the GPUs (without GPUs: gloo)"
    why = (
        f"{plan.choice.best.prediction.settings.streams} TCP connections to each peer need it"
        if plan.choice.best.prediction.settings.streams > 1
        else "its state does not fit beside the training"
    )
    return f"{inside}gloo between islands, with the sync's state in CPU memory: {why}"


def _ranks(count: int) -> str:
    return "1 rank (GPU)" if count == 1 else f"{count} ranks (GPUs)"
