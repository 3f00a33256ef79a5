"""One rank's part of an island's replica: which tensors it syncs, and how the rest of the island learns of it.

A sync runs shard by shard: the ranks with one number, one of each island, exchange what they hold and nothing else, so
that no rank ever gathers the model and every rank uses its own link.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.island.dtensor import local
from lowcomm.island.mesh import Mesh
from lowcomm.types import CoverageError, DivergenceError, TransportError

MOST_BYTES = 1 << 26
"""Of a text that a rank tells the others of its island."""


class Part(ABC):
    """What one rank holds. Without a mesh the island is this one rank."""

    mesh: Mesh | None = None
    averages_gradients: bool = True
    """Whether a step's gradients can be averaged over the islands (schedules with data-parallel steps)."""

    @abstractmethod
    def held(self, model: nn.Module) -> dict[str, Tensor]:
        """Tensors that this rank syncs, by parameter name, in the model's order; none is empty.

        Any float dtype, any shape; each shares memory with what the inner optimizer updates.
        """

    def expected(self, model: nn.Module) -> dict[str, int]:
        """Elements of each trainable parameter, which the island's ranks must hold between them, each once."""
        return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}

    def frozen(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """What lies here of parameters that are not trained, which all islands must have alike."""
        parameters = dict(model.named_parameters())
        return {name: local(parameters[name]) for name in names}

    def gradient(self, name: str, held: Tensor, parameter: Tensor) -> Tensor:
        """The gradient of a held tensor, of its shape and sharing memory with the parameter's."""
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad

    def written(self, names: Sequence[str]) -> None:  # noqa: B027 - most parts have nobody to tell
        """What the ranks hold of these parameters was overwritten; afterwards the whole island trains on with it.

        names: equal on all ranks of the island, those among them of which this rank holds nothing.
        """

    def gradients_written(self, names: Sequence[str]) -> None:  # noqa: B027
        """The same for gradients."""

    def check_inner(self, parameters: Sequence[Tensor], inner: Optimizer) -> None:
        """Raise CoverageError if the inner optimizer updates tensors that are not synced.

        parameters: all of the model, frozen ones included, which an optimizer may hold and leaves as they are.
        """
        check_optimized(parameters, [p for g in inner.param_groups for p in g["params"]])


class Whole(Part):
    """An island of one rank: it holds every trainable parameter."""

    def held(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_optimized(parameters: Iterable[Tensor], optimized: Iterable[Tensor]) -> None:
    """Raise CoverageError if the inner optimizer updates tensors that are not among the model's trainable parameters.

    Frozen ones may be in it: torch skips a parameter without a gradient, so that one with a left-over gradient may not.
    """
    known = {id(p): p for p in parameters}
    held = list(optimized)
    strangers = sum(id(t) not in known for t in held)
    if strangers:
        raise CoverageError(
            f"the inner optimizer updates {strangers} tensors that are not parameters of the model: "
            "they would drift apart unseen. Build the optimizer from this model's parameters."
        )
    moving = [t for t in held if not t.requires_grad and t.grad is not None]
    if moving:
        raise CoverageError(
            f"the inner optimizer holds {len(moving)} frozen parameters that still have a gradient, the first of shape "
            f"{tuple(moving[0].shape)}: it would move them unseen. Set their .grad to None when you freeze them."
        )


def prove_shares(mesh: Mesh, held: Mapping[str, Tensor], expected: Mapping[str, int], settings: str) -> dict[str, int]:
    """Elements of the island's trainable parameters by name, which its ranks must hold between them, each once.

    Raises CoverageError on every rank of it otherwise, by elements: names and sizes of all ranks are compared with what
    the model has. settings: must be equal on all of them, or DivergenceError is raised.
    """
    own = {"held": {name: t.numel() for name, t in held.items()}, "expected": dict(expected), "settings": settings}
    found: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for row in gather_texts(mesh, json.dumps(own)):
        theirs = json.loads(row)
        if theirs["settings"] != settings:
            raise DivergenceError(
                f"ranks of island {mesh.island} disagree on the sync's settings: {settings} against "
                f"{theirs['settings']}. Start all with the same code and recipe."
            )
        wanted |= theirs["expected"]
        for name, numel in theirs["held"].items():
            found[name] = found.get(name, 0) + numel
    for name in [*wanted, *found]:
        if found.get(name, 0) != wanted.get(name, 0):
            raise CoverageError(
                f"parameter {name} has {wanted.get(name, 0)} elements, but the {mesh.size} ranks of island "
                f"{mesh.island} hold {found.get(name, 0)} between them: each must be held once"
            )
    return wanted


def gather_texts(mesh: Mesh, text: str) -> list[str]:
    """A text of each rank of the island, in rank order."""
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    sizes = [int(size) for size in mesh.rows(torch.tensor([data.numel()])).flatten()]
    for rank, size in enumerate(sizes):
        if not 0 <= size <= MOST_BYTES:
            raise TransportError(
                f"rank {rank} of island {mesh.island} announces {size} bytes, 0 to {MOST_BYTES} are possible"
            )
    longest = max(sizes)
    row = torch.zeros(longest, dtype=torch.uint8)
    row[: data.numel()] = data
    return [bytes(r.tolist()).rstrip(b"\0").decode() for r in mesh.rows(row)]


def rows_held(length: int, ranks: int, rank: int) -> slice:
    """Rows of dimension 0 that rank `rank` of `ranks` holds: chunks of equal size, the last ones shorter or empty.

    The cut that FSDP2 makes, so that both kinds of island send the same payloads.
    """
    step = -(-length // ranks)
    return slice(min(rank * step, length), min((rank + 1) * step, length))


def spread(tensor: Tensor, mesh: Mesh) -> None:
    """Overwrite a tensor of all the island's ranks with what each has in its `rows_held`."""
    length = tensor.shape[0]
    own = tensor[rows_held(length, mesh.size, mesh.rank)]
    if length % mesh.size == 0 and tensor.is_contiguous():
        dist.all_gather_single(tensor.view(-1), own.clone().view(-1), group=mesh.inside)
        return
    for rank in range(mesh.size):
        part = tensor[rows_held(length, mesh.size, rank)]
        if part.numel():
            sent = part.contiguous()
            dist.broadcast(sent, group_src=rank, group=mesh.inside)
            part.copy_(sent)
