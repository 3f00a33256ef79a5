"""What a member knows: of the chain, of itself, and of what it may or must do next. Nothing here asks the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lowcomm.store import leases
from lowcomm.store.chain_state import ChainState, Member
from lowcomm.store.follower import Follower
from lowcomm.store.healer import Healer
from lowcomm.store.lookout import Lookout
from lowcomm.store.own_work import OwnWork
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.surroundings import Phase, Surroundings


class MemberView:
    """The part of `StoreIsland` that only looks."""

    rules: ChainRules
    policy: Policy
    around: Surroundings
    follower: Follower
    lookout: Lookout
    healer: Healer
    work: OwnWork
    phase: Phase
    why: str
    """Why it heals."""
    inc: str
    """The incarnation: new for every start and every heal."""

    @property
    def state(self) -> ChainState:
        """The version that it has followed the chain to; there is none before it has healed."""
        assert self.follower.state is not None
        return self.follower.state

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
        pending = self.work.blocks()
        return () if self.me is None else tuple(b for b in self.me.lease if b not in pending)

    @property
    def closing(self) -> bool:
        """Whether nothing more is given out: send what is held."""
        return self.state.closing

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.state.done

    @property
    def stop_asked(self) -> bool:
        """Whether `control/stop` was seen, or the chain says so."""
        return self.lookout.stop or self.state.stopping

    def may_contribute(self, fragment: int) -> bool:
        """Whether it is a member with fewer pending contributions to this fragment than are allowed."""
        return self.phase == Phase.MEMBER and self.work.count(fragment) < self.policy.pending

    def must_finish(self, fragment: int) -> bool:
        """Whether a last contribution to this fragment is still wanted, even without anything trained."""
        if self.me is None or not self.closing or fragment in self.me.finished or not self.is_last(()):
            return False
        sent = any(one.last and one.fragment == fragment for one in self.work.pending.values())
        return not sent and fragment in leases.wanted_of(self.state, self.me, self.rules)

    def is_last(self, blocks: tuple[int, ...]) -> bool:
        """Whether nothing is left to be trained here after a contribution with these blocks."""
        ends = self.state.stopping or self.rules.blocks is None
        return self.closing and (ends or set(self.lease) <= set(blocks))

    def outstanding(self, fragment: int) -> Tensor | None:
        """Sum of what departed from the local weights and is in no commit yet: fp32, flat; None: nothing."""
        return self.work.outstanding(fragment)

    def status(self) -> dict[str, Any]:
        """For logs and people."""
        known, work = self.follower.state, self.work
        here = {} if known is None else {
            "version": known.version, "members": {i: m.name for i, m in known.members.items()},
            "lease": list(self.lease),
        }  # fmt: skip
        return {
            "phase": self.phase.value, "why": self.why, "inc": self.inc, "name": self.around.name, **here,
            "pending": sorted(work.pending), "unsent_objects": len(work.outbox.left), "stuck": self.follower.stuck,
            "heal": self.healer.why,
        }  # fmt: skip
