"""A hook: what takes part in a round beside the Delta."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from lowcomm.state.outgoing import Arrived, Outgoing
from lowcomm.types import Part

Place = tuple[Tensor, Callable[[Tensor], None]]
"""A tensor, and what puts an equal one in its place."""


class Hook:
    """Base of the hooks: nothing happens in what one does not override.

    Called in the order of `SyncState.hooks`, `after_write` in the reverse order.

    What the others must know goes into `out.sections`, so that one message per island and round is enough.
    """

    exchanges_again: ClassVar[bool] = False
    """Whether `exchange` talks to the other islands: refused by exchanges that have one message per round."""

    @property
    def numbers(self) -> int:
        """Numbers of its section, alike in every round."""
        return 0

    def release(self, out: Outgoing) -> None:
        """Before the exchange: change Deltas in place, add sections."""

    def exchange(self, out: Outgoing, arrived: Arrived) -> object:
        """Once the exchange has succeeded: what a commit is to change. Raises SyncError; nothing has changed then."""
        return None

    def before_write(self, out: Outgoing, arrived: Arrived) -> None:
        """Before the outer step and the new weights of the replicas; it can't fail."""

    def after_write(self, out: Outgoing, arrived: Arrived, change: object) -> bytes | None:
        """After the new weights were written. `change`: from `exchange`.

        Returns a digest of what else must be equal on all islands, or None.
        """
        return None

    def note(self, arrived: Arrived) -> str | None:
        """A line for the log of the committed round."""
        return None

    def global_part(self) -> Part:
        """For the checkpoint: what is equal on every island."""
        return {}, {}

    def load_global(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `global_part` gave, from the checkpoint's whole global part."""

    def kept(self, local: int) -> Iterable[Place]:
        """Tensors that belong to a local island between its rounds, each with what puts another in its place."""
        return ()

    def island_part(self, local: int) -> Part:
        """For the checkpoint: what belongs to a local island."""
        return {}, {}

    def load_island(self, local: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put back what `island_part` gave, from the checkpoint's whole part of that island."""
