"""A replica: one local island's model and inner optimizer, as a sync sees them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.island.part import Part
from lowcomm.island.scalars import ScalarOptimizer
from lowcomm.state.fragment import Fragment
from lowcomm.state.write_watch import WriteWatch
from lowcomm.types import SyncError

FILLER = "nothing here: fragment "
"""Beginning of the name of an element that stands for a fragment's missing part."""


class Replica:
    """Counts steps and tokens of one local island, or of this rank's part of one.

    like: another replica of the same model, whose tables of names are shared.
    """

    shares_model = False
    """Whether it takes turns on one model with other islands (`state/client.py`)."""

    def __init__(self, model: nn.Module, inner: Optimizer, part: Part, like: Replica | None = None) -> None:
        self.model, self.inner, self.part = model, inner, part
        self.params = _trainable(model) if like is None else like.params
        self.held = part.held(model) if like is None else like.held
        """What is synced from here, by parameter name."""
        self.elements = sum(p.numel() for p in self.params.values()) if like is None else like.elements
        """Of the island's trainable parameters, those that other ranks hold among them."""
        self.buffers = dict(model.named_buffers()) if like is None else like.buffers
        self.steps = 0
        self.tokens = 0.0
        self.next_tokens = 0
        self.synced_tokens: dict[int, float] = {}
        self.losses: tuple[float, int] = (0.0, 0)
        """Sum and number of the inner steps' losses (nats per token) that were said since a rule last took them."""
        self.failed_at: int | None = None
        """Inner step whose loss or gradients were not finite, the last one."""
        self.unusable: set[int] = set()
        """Fragments of which it has nothing to contribute since then: it rests until all have been exchanged."""
        self._lists: dict[int, list[Tensor]] = {}
        self._watch: WriteWatch | None = None

    def watch(self) -> None:
        """Warn, once, of weights that are written between two inner steps."""
        if not isinstance(self.inner, ScalarOptimizer):  # which tries out weights between its steps
            self._watch = WriteWatch(self.params, bool(self.inner.state))
            self.inner.register_step_pre_hook(lambda *_: self._check_written())

    def _check_written(self) -> None:
        if self._watch is not None:
            self._watch.check(self.steps)

    def check_counted(self) -> None:
        """Raises SyncError where the weights were trained, and by no step of this optimizer: nothing was merged."""
        if self._watch is None or self.steps or self.tokens:
            return
        if name := self._watch.written():
            raise SyncError(
                f"{name} was written since the sync was made, but the inner optimizer that it was given "
                f"({type(self.inner).__name__}) has made no step: the islands trained apart and nothing was merged. "
                "Fix: give the sync the optimizer that the loop steps"
            )

    def tensors(self, fragment: Fragment) -> list[Tensor]:
        """This island's tensors of a fragment, in its order."""
        key = id(fragment)
        if key not in self._lists:
            self._lists[key] = [self.held[n] if n in self.held else self.buffers[n] for n in fragment.names]
        return self._lists[key]

    def own(self, name: str) -> Tensor:
        """A held tensor, to be overwritten for this island alone."""
        return self.held[name]

    def keep(self, name: str, value: Tensor) -> None:
        """Hold this in place of a tensor's global values; `value` is the replica's from now on."""
        self.held[name].copy_(value)

    def follows(self, name: str) -> bool:
        """Whether this held tensor is the global one, of which this island has no copy."""
        return False

    @property
    def idle(self) -> bool:
        """Whether it has the global weights, of which it has no copy."""
        return False

    def adopt(self, fragment: Fragment) -> list[Tensor]:
        """Where a fragment's global weights are to be written for this island; of several islands maybe one place."""
        return self.tensors(fragment)

    def take_turn(self, *, train: bool = False) -> None:
        """Let the model hold this island's weights; train: they are about to change."""

    def grads(self, fragment: Fragment) -> list[Tensor]:
        """Gradients of `tensors`, made of zeros where this island had none: the others may have one."""
        return [self._gradient(name) for name in fragment.names]

    def _gradient(self, name: str) -> Tensor:
        held = self.held[name]
        return self.part.gradient(name, held, self.params[name]) if name in self.params else torch.zeros_like(held)

    def fill(self, fragment: int) -> str:
        """Hold one element that stays 0 for a fragment of which nothing lies here; returns its name."""
        name = f"{FILLER}{fragment}"
        self.held[name] = torch.zeros(1)
        return name

    def written(self, fragment: Fragment) -> None:
        """Its tensors were overwritten: the island's other ranks are told."""
        self._mark_written()
        self.part.written([name for name in fragment.covers if name in self.params])

    def take_step(self) -> None:
        """Count one inner step and the tokens announced for it (one unit if none were)."""
        self._mark_written()
        self.steps += 1
        self.tokens += self.next_tokens or 1
        self.next_tokens = 0

    @property
    def loss(self) -> float | None:
        """Their mean; None: nobody has said one."""
        total, count = self.losses
        return total / count if count else None

    def count_loss(self, loss: float) -> None:
        """Say the loss of an inner step."""
        self.losses = (self.losses[0] + loss, self.losses[1] + 1)

    def _mark_written(self) -> None:
        if self._watch is not None:
            self._watch.mark()

    def unsynced(self, fragment: int) -> float:
        """Tokens trained since this fragment's last sync."""
        return self.tokens - self.synced_tokens.get(fragment, 0.0)

    def mark_synced(self, fragment: int) -> None:
        """This fragment now holds the global weights."""
        self.synced_tokens[fragment] = self.tokens


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
