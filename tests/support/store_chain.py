"""Pieces of a chain that is made by hand: rules, a version with members, contributions, commits."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lowcomm.codec import Codec, Fp32
from lowcomm.outer import Nesterov, Outer
from lowcomm.store import fold as folding
from lowcomm.store.chain_state import ChainState, first_state
from lowcomm.store.commit import Admitted, Commit, Used
from lowcomm.store.contribution import Contribution, pack, unpack
from lowcomm.store.fold import fold
from lowcomm.store.layout import Layout
from lowcomm.store.own_work import OwnWork, Work
from lowcomm.store.rules import ChainRules
from lowcomm.types import Delta

A, B, C = "a" * 32, "b" * 32, "c" * 32
LAYOUTS = (Layout(names=("w", "b"), shapes=((4, 3), (3,))), Layout(names=("head",), shapes=((5,),)))


def rules(codec: Codec | None = None, outer: Outer | None = None, **changes: Any) -> ChainRules:
    base = ChainRules(
        run_id="5" * 32, layouts=LAYOUTS, codec=codec or Fp32(), outer=outer or Nesterov(), blocks=20, lease_blocks=3
    )
    return dataclasses.replace(base, **changes)


def begun(law: ChainRules, members: tuple[str, ...] = (A, B)) -> ChainState:
    """Version 1: these are members."""
    torch.manual_seed(0)
    state = first_state([lay.views(torch.randn(lay.numel)) for lay in law.layouts], law)
    admit = tuple(Admitted(inc=inc, name="x", base=0) for inc in members)
    return fold(state, commit(state, admit=admit).write(), {}, law).state


def commit(state: ChainState, **fields: Any) -> Commit:
    return Commit(v=state.version, by=A, nonce="0" * 32, prev=state.prev, state=state.digest, **fields)


def contribute(state: ChainState, work: OwnWork, fragment: int = 0, seed: int = 0, blocks: Any = None) -> Contribution:
    """The author's next one: with the blocks that it holds."""
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(work.rules.layouts[fragment].numel, generator=generator)
    held = state.members[work.inc].lease if work.inc in state.members else ()
    blocks = (held if fragment == 0 else ()) if blocks is None else blocks
    header, sections = work.encode(state, fragment, delta, Work(tokens=10 + seed, steps=1, blocks=blocks))
    whole, objects = pack(header, sections, 1 << 20)
    return unpack(whole.key, objects[-1][1])


def using(state: ChainState, ones: list[Contribution], weights: list[float] | None = None, **fields: Any) -> Commit:
    weights = weights or [1 / len(ones)] * len(ones)
    used = tuple(Used(key=c.header.key, sha256=c.sha256, weight=w) for c, w in zip(ones, weights, strict=True))
    return commit(state, used=used, **fields)


def delta_of(state: ChainState, one: Contribution, law: ChainRules) -> Delta:
    return folding.decode(one, LAYOUTS[0], folding.round_of(state, one, law), law)


def held(*ones: Contribution) -> dict[str, Any]:
    return {c.header.key: c for c in ones}
