"""A member of a run: follows the chain, contributes to it, proposes commits.

    START -> HEAL -> JOIN -> MEMBER -> DONE
               ^               |  removed, snapshot needed, anchor differs, NaN: new incarnation, local work dropped
               +---------------+

Every call asks the store a few things and returns: nothing sleeps inside, the caller polls. Clock, randomness and store
are handed in, so that a checker decides what happens when. The caller holds the local weights (`local_weights.py`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lowcomm.store.applied import Applied
from lowcomm.store.chain_state import ChainState, Member
from lowcomm.store.objects import Objects
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.run_file import RunFile


class Phase(enum.Enum):
    """What an island does next."""

    HEAL = "heal"
    JOIN = "join"
    MEMBER = "member"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What an island takes from outside."""

    name: str
    """A label: two processes of one name are two members."""
    clock: Callable[[], float]
    """Monotonic seconds of one's own."""
    draw: Callable[[], str]
    """128 random bits in hex: incarnations and nonces."""
    wall: Callable[[], str] = lambda: ""
    """Wall time for people."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Versions and hardware, for people."""


class StoreIsland:
    """One member. `heal` until it is True and take `state.fragments[i].weights` as local weights; then `poll`."""

    def __init__(self, objects: Objects, run: RunFile, rules: ChainRules, policy: Policy, around: Surroundings) -> None:
        self.objects, self.run, self.rules, self.policy, self.around = objects, run, rules, policy, around
        self.phase = Phase.HEAL
        self.why = "it starts"
        """Why it heals."""
        self.inc = ""
        self.state: ChainState

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def version(self) -> int:
        """Of the chain, as far as it was followed."""
        return self.state.version

    @property
    def me(self) -> Member | None:
        """None: it is no member."""
        return self.state.members.get(self.inc)

    @property
    def members(self) -> Mapping[str, Member]:
        """By incarnation."""
        return self.state.members

    @property
    def lease(self) -> tuple[int, ...]:
        """Blocks to train, in order; those of contributions that are pending are left out."""
        raise NotImplementedError

    @property
    def closing(self) -> bool:
        """Whether nothing more is given out: send what is held, with the codec's `last`."""
        return self.state.closing

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.state.done

    @property
    def stop_asked(self) -> bool:
        """Whether `control/stop` was seen."""
        raise NotImplementedError

    def may_contribute(self, fragment: int) -> bool:
        """Whether it is a member with fewer pending contributions to this fragment than are allowed."""
        raise NotImplementedError

    def must_finish(self, fragment: int) -> bool:
        """Whether a last contribution to this fragment is still wanted of it: the run is closing."""
        raise NotImplementedError

    def outstanding(self, fragment: int) -> Tensor | None:
        """Sum of what departed from the local weights and is in no commit yet: fp32, flat; None: nothing."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """For logs and people: phase, version, members, pending, what it waits for, trouble with the store."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------- what it does

    def poll(self) -> list[Applied]:
        """All that a member does beside training: send, follow, ask to join, propose, snapshots, garbage.

        Look at `phase` afterwards: HEAL means that the local work is to be dropped. Raises StoreError (back off and
        poll again) and DivergenceError (this machine's arithmetic differs: stop).
        """
        raise NotImplementedError

    def heal(self) -> bool:
        """Become somebody new: newest confirmed snapshot, then the chain. False: not yet, call it again."""
        raise NotImplementedError

    def ask(self) -> None:
        """Ask to join with the present version as base; asks anew, as somebody new, after S versions."""
        raise NotImplementedError

    def follow(self) -> list[Applied]:
        """Apply every commit that can be read."""
        raise NotImplementedError

    def contribute(
        self,
        deltas: Mapping[int, Tensor],
        *,
        tokens: int,
        steps: int,
        blocks: tuple[int, ...] = (),
        expected_s: float = 0.0,
        last: bool = False,
        sections: Mapping[str, bytes] | None = None,
    ) -> None:
        """Encode a Delta for each of these fragments (fp32, flat: `local_weights.delta_of`) and send it.

        From here on it is out, whatever the store answers. Tokens and blocks count with fragment 0. A Delta that is
        not finite makes the island heal.
        """
        raise NotImplementedError

    def propose(self) -> bool:
        """Try to create the next commit if the policy says so; what is there then, `follow` applies."""
        raise NotImplementedError

    def finish(self) -> bool:
        """After `done`: whether the last snapshot is announced, or was waited for long enough. Call it again if not."""
        raise NotImplementedError
