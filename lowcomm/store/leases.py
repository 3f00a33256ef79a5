"""Data leases: which member trains which blocks. A block counts when a commit uses its contribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from lowcomm.store.chain_state import ChainState, Member
from lowcomm.store.rules import ChainRules


def settle(member: Member, blocks: tuple[int, ...]) -> Member:
    """A member whose contribution with these blocks was used."""
    used = set(blocks)
    return dataclasses.replace(member, lease=tuple(b for b in member.lease if b not in used))


def take_back(state: ChainState, incs: list[str]) -> ChainState:
    """Remove members; their blocks are to be leased again."""
    members, returned = dict(state.members), list(state.returned)
    for inc in incs:
        returned += members.pop(inc).lease
    gone = {**state.gone, **dict.fromkeys(incs, state.version)}
    return dataclasses.replace(state, members=members, returned=tuple(returned), gone=gone)


def grant(state: ChainState, rules: ChainRules) -> ChainState:
    """Top each member up, in the order of incarnations: from returned blocks, then from those not leased yet."""
    if rules.blocks is None or state.stopping or _enough(state, rules):
        return state
    members, returned, following = dict(state.members), list(state.returned), state.next_block
    for inc in sorted(members):
        lease = list(members[inc].lease)
        while len(lease) < rules.lease_blocks and (returned or following < rules.blocks):
            if returned:
                lease.append(returned.pop(0))
            else:
                lease.append(following)
                following += 1
        if len(lease) > len(members[inc].lease):  # whoever had sent its last one goes on
            members[inc] = dataclasses.replace(members[inc], lease=tuple(sorted(lease)), finished=())
    return dataclasses.replace(state, members=members, returned=tuple(returned), next_block=following)


def close(state: ChainState, rules: ChainRules) -> ChainState:
    """Whether anything is left to give out, and whether the run is over."""
    given_out = rules.blocks is not None and not state.returned and state.next_block >= rules.blocks
    closing = state.stopping or _enough(state, rules) or given_out
    lent = any(m.lease for m in state.members.values())
    finished = all(len(m.finished) == len(state.fragments) for m in state.members.values())
    if state.stopping or rules.blocks is None:
        over = finished
    else:
        over = not lent and (finished or not rules.codec.holds_back)
    return dataclasses.replace(state, closing=closing, done=closing and over)


def wanted_of(state: ChainState, member: Member, rules: ChainRules) -> Mapping[int, str]:
    """Fragments that a member is still expected to contribute to, with the reason."""
    every = range(len(state.fragments))
    if not state.closing:
        busy = rules.blocks is None or member.lease
        return dict.fromkeys(every, "it trains") if busy else {}
    left = [f for f in every if f not in member.finished]
    if member.lease and not state.stopping:
        return dict.fromkeys(every, "it trains its last blocks")
    last_wanted = state.stopping or rules.blocks is None or rules.codec.holds_back
    return dict.fromkeys(left, "its last one is wanted") if last_wanted else {}


def _enough(state: ChainState, rules: ChainRules) -> bool:
    return rules.target_tokens is not None and state.tokens_done >= rules.target_tokens
