"""A member's own work: codec states, and what departed from its local weights and is in no commit yet.

    local = global(version) - sum(departed of pending contributions) - unsent

What departs is the Delta where the codec keeps its error beside the weights (or loses it), and what was sent of it
where the rest stays in the weights. From `encode` on it is out, whatever the store answers: it is never sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowcomm.codec import State
from lowcomm.state.norms import l2_norm
from lowcomm.store import contribution, keys
from lowcomm.store.chain_state import ChainState, Member
from lowcomm.store.contribution import DELTA, Contribution, Header
from lowcomm.store.objects import Objects
from lowcomm.store.outbox import Outbox
from lowcomm.store.rules import ChainRules


@dataclass(frozen=True, kw_only=True)
class Departed:
    """A contribution that is out."""

    fragment: int
    base: int
    blocks: tuple[int, ...]
    last: bool
    flat: Tensor = field(repr=False)
    """fp32, on the CPU: what it took from the local weights."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a contribution says beside its Delta."""

    tokens: int
    steps: int
    blocks: tuple[int, ...] = ()
    expected_s: float = 0.0
    last: bool = False
    sections: Mapping[str, bytes] = field(default_factory=dict)


class OwnWork:
    """Of one incarnation."""

    def __init__(self, rules: ChainRules, inc: str) -> None:
        self.rules, self.inc = rules, inc
        self.seq = 0
        self.outbox = Outbox()
        self._sent: dict[str, Contribution] = {}
        """By key: those that have not arrived yet."""
        self.pending: dict[int, Departed] = {}
        """By sequence number."""
        self.states: list[State] = [
            rules.codec.init(layout.views(torch.zeros(layout.numel))) for layout in rules.layouts
        ]

    def depart(self, state: ChainState, fragment: int, delta: Tensor, work: Work, part_bytes: int) -> None:
        """Encode and queue the next contribution. Raises PayloadError, and then nothing has departed."""
        header, sections = self.encode(state, fragment, delta, work)
        whole, objects = contribution.pack(header, sections, part_bytes)
        apart = b"".join(data for _, data in objects[:-1]) if len(objects) > 1 else None
        self._sent[whole.key] = contribution.unpack(whole.key, objects[-1][1], apart)
        self.outbox.add(objects)

    def send(self, objects: Objects) -> dict[str, Contribution]:
        """Send what is queued; returns contributions that have arrived, by key. Raises StoreError."""
        arrived = self.outbox.send(objects)
        return {key: self._sent.pop(key) for key in arrived if key in self._sent}

    @torch.no_grad()
    def encode(self, state: ChainState, fragment: int, delta: Tensor, work: Work) -> tuple[Header, dict[str, bytes]]:
        """The next contribution: its header and sections. Raises PayloadError, and then nothing has departed."""
        seen = state.seen(state.version)
        assert seen is not None
        layout, seq = self.rules.layouts[fragment], self.seq + 1
        now = self.rules.round_of(self.inc, seq, fragment, seen.fragments[fragment], last=work.last)
        codec = self.rules.codec.at(now)
        payload, after = codec.encode(layout.views(delta), self.states[fragment], now)
        residual, after = self.rules.codec.take_residual(after)
        departed = delta.clone() if residual is None else delta - residual
        header = Header(
            run_id=self.rules.run_id, inc=self.inc, seq=seq, base=state.version, fragment=fragment,
            anchor=seen.digest, codec=self.rules.codec_name, tokens=work.tokens, steps=work.steps,
            norm=float(l2_norm(delta)), blocks=tuple(sorted(work.blocks)) if fragment == 0 else (), last=work.last,
            expected_s=work.expected_s,
        )  # fmt: skip
        self.seq, self.states[fragment] = seq, after
        self.pending[seq] = Departed(
            fragment=fragment, base=state.version, blocks=header.blocks, last=work.last, flat=departed
        )
        return header, {DELTA: payload.data.cpu().numpy().tobytes(), **work.sections}

    def settle(self, member: Member | None) -> dict[int, Tensor]:
        """Contributions up to the member's settled number are in the global weights: by fragment, what had departed."""
        sums: dict[int, Tensor] = {}
        for seq in [s for s in self.pending if member is not None and s <= member.settled]:
            one = self.pending.pop(seq)
            sums[one.fragment] = sums[one.fragment] + one.flat if one.fragment in sums else one.flat
        return sums

    def outstanding(self, fragment: int) -> Tensor | None:
        """Sum of what is pending: fp32, flat; None: nothing."""
        flats = [one.flat for one in self.pending.values() if one.fragment == fragment]
        return torch.stack(flats).sum(dim=0) if len(flats) > 1 else flats[0] if flats else None

    def count(self, fragment: int) -> int:
        """Pending contributions to a fragment."""
        return sum(one.fragment == fragment for one in self.pending.values())

    def blocks(self) -> set[int]:
        """Blocks of pending contributions."""
        return {b for one in self.pending.values() for b in one.blocks}

    def too_old(self, state: ChainState) -> list[str]:
        """Keys of pending contributions that nobody may use any more."""
        oldest = state.version - self.rules.stale
        return [keys.delta(one.base, self.inc, seq) for seq, one in self.pending.items() if one.base < oldest]
