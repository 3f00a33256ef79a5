"""Clients that take turns on one model: simulated islands without a copy of it each.

A client has tensors of its own only for weights that differ from the global ones: from its first inner step of a round
up to the commit, and for good where it keeps some to itself. All others are the `Seat`'s, one copy of the global
weights in the model's dtype for everybody. Who takes its turn has its tensors put into the model's parameters, without
a copy. Its inner optimizer is its own, over the same parameters, so that moments stay apart; a client that has not
trained has none.

Reduces to: a replica each, bit for bit: the same operations on the same values in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from lowcomm.island.part import Part
from lowcomm.state.fragment import Fragment
from lowcomm.state.replica import Replica
from lowcomm.types import SyncError

ALIGNED_BYTES = 64
"""Where torch lets a tensor's memory begin."""


class Seat:
    """The one model, and the global weights that its clients share."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shared = {name: p.detach().clone() for name, p in self.params.items()}
        """The global weights by name, in the model's dtype."""
        self.sitting: Client | None = None
        """Whose weights the parameters hold."""
        self._lists: dict[int, list[Tensor]] = {}

    def tensors(self, fragment: Fragment) -> list[Tensor]:
        """The shared tensors of a fragment: always the same list, by which clients know each other."""
        return self._lists.setdefault(id(fragment), [self.shared[name] for name in fragment.names])


class Client(Replica):
    """A replica whose weights are the seat's until it trains."""

    shares_model = True

    def __init__(self, seat: Seat, inner: Optimizer, part: Part, like: Replica | None) -> None:
        super().__init__(seat.model, inner, part, like)
        self.seat = seat
        self.held = seat.shared
        inner.register_step_pre_hook(lambda *_: self._check_turn())

    def tensors(self, fragment: Fragment) -> list[Tensor]:
        if self.held is self.seat.shared:
            return self.seat.tensors(fragment)
        return [self.held[name] for name in fragment.names]

    def own(self, name: str) -> Tensor:
        shared = self.seat.shared
        if self.held is shared:
            self.held = dict(shared)
        if self.held[name] is shared[name]:
            self.held[name] = shared[name].clone()
            if self.seat.sitting is self:
                self.seat.params[name].data = self.held[name]
        return self.held[name]

    def keep(self, name: str, value: Tensor) -> None:
        if self.held is self.seat.shared:
            self.held = dict(self.held)
        self.held[name] = value
        self.stand_up()

    def follows(self, name: str) -> bool:
        return self.held[name] is self.seat.shared[name]

    @property
    def idle(self) -> bool:
        return self.held is self.seat.shared

    def adopt(self, fragment: Fragment) -> list[Tensor]:
        shared = self.seat.shared
        if self.held is not shared:
            self.held |= {name: shared[name] for name in fragment.names}
            if all(self.held[name] is shared[name] for name in shared):
                self.held = shared
            self.stand_up()
        return self.seat.tensors(fragment)

    def take_turn(self, *, train: bool = False) -> None:
        if train and (self.held is self.seat.shared or any(map(self.follows, self.held))):
            for name in self.seat.shared:
                self.own(name)
        if self.seat.sitting is not self:
            for name, p in self.seat.params.items():
                if self.held[name].data_ptr() % ALIGNED_BYTES:  # from a file: products may round by where a matrix lies
                    self.held[name] = self.held[name].clone()
                p.data = self.held[name]
            self.seat.sitting = self

    def _check_turn(self) -> None:
        """Raise SyncError for a step outside its turn, which would train another client's weights."""
        if self.seat.sitting is not self or self.held is self.seat.shared:
            raise SyncError("a client takes an inner step outside its turn. Fix: take_turn(k, train=True) before it")

    def stand_up(self) -> None:
        """Other tensors were put in the place of its own: the model gets them when its next turn comes."""
        if self.seat.sitting is self:
            self.seat.sitting = None

    def written(self, fragment: Fragment) -> None:
        """Nobody else has to be told."""


def clients_of(model: nn.Module, inners: Sequence[Optimizer], part: Part) -> list[Replica]:
    """Replicas that take turns on one model: one per inner optimizer, all over its parameters."""
    seat = Seat(model)
    first = Client(seat, inners[0], part, None)
    return [first, *(Client(seat, inner, part, first) for inner in inners[1:])]
