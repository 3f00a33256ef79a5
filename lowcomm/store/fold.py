"""The fold: version V and the bytes of commit V -> version V + 1. The only place where history is made.

A pure function of state and bytes. An invalid commit uses its number up and changes nothing else: no stall, no fork.
Aggregation and outer step are fp32 on the CPU, in the order of the commit, product and sum rounded apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowcomm import optimizer_state
from lowcomm.aggregate import Context
from lowcomm.store import leases, text, valid
from lowcomm.store.applied import Applied, Change, UsedOne
from lowcomm.store.chain_state import NORM_ROUNDS, OUTER, ChainState, FragmentState, Member
from lowcomm.store.commit import Commit
from lowcomm.store.contribution import Contribution
from lowcomm.store.layout import Layout
from lowcomm.store.rules import ChainRules
from lowcomm.types import ConfigError, Delta, Payload, PayloadError, Round
from lowcomm.types import Contribution as Decoded


class Folded(NamedTuple):
    """The next version, and what changed."""

    state: ChainState
    applied: Applied


def fold(state: ChainState, raw: bytes, held: valid.Held, rules: ChainRules) -> Folded:
    """The next version. held: what lies under every key that the commit names."""
    nothing = _advanced(state, raw, rules, state)
    try:
        commit, used = valid.check(state, raw, held, rules)
        fragments, changes = _steps(state, commit, used, rules)
    except PayloadError as error:
        applied = Applied(version=nothing.version, commit=_readable(raw), why=str(error), nbytes=len(raw))
        return Folded(nothing, applied)
    after = dataclasses.replace(
        state,
        fragments=fragments,
        members=_settled(state, used),
        tokens_done=state.tokens_done + sum(c.header.tokens for c in used if c.header.fragment == 0),
        stopping=state.stopping or commit.stop,
        pace=state.pace if commit.pace is None else commit.pace,
        snapshots=_announced(state, commit, rules),
    )
    after = leases.take_back(after, [r.inc for r in commit.remove])
    newcomers = {a.inc: Member(name=a.name) for a in commit.admit}
    after = dataclasses.replace(after, members={**after.members, **newcomers})
    after = leases.close(leases.grant(after, rules), rules)
    applied = Applied(
        version=nothing.version,
        commit=commit,
        changes=tuple(changes),
        used=tuple(_used_one(state, c, u.weight) for c, u in zip(used, commit.used, strict=True)),
        nbytes=len(raw) + sum(c.nbytes for c in used),
    )
    return Folded(_advanced(after, raw, rules, state), applied)


def decode(contribution: Contribution, layout: Layout, round: Round, rules: ChainRules) -> Delta:
    """The Delta's tensors. Raises PayloadError."""
    like = layout.views(torch.empty(layout.numel))  # for its shapes: nothing reads or writes it
    return rules.codec.at(round).decode(_payload(contribution), like, round)


def round_of(state: ChainState, contribution: Contribution, rules: ChainRules) -> Round:
    """The round under which it was encoded."""
    h = contribution.header
    seen = state.seen(h.base)
    index = 0 if seen is None else seen.fragments[h.fragment]
    return rules.round_of(h.inc, h.seq, h.fragment, index, last=h.last)


@torch.no_grad()
def mean_of(
    state: ChainState, used: Sequence[Contribution], weights: Sequence[float], rules: ChainRules
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """The aggregate of contributions to one fragment, flat, and the rule's state after it. Raises PayloadError."""
    fragment = used[0].header.fragment
    layout, before = rules.layouts[fragment], state.fragments[fragment]
    flat = torch.zeros(layout.numel)
    mean = layout.views(flat)
    if rules.aggregator.needs == "sum" and rules.turn is None:
        for one, weight in zip(used, weights, strict=True):
            now = round_of(state, one, rules)
            rules.codec.at(now).accumulate(_payload(one), weight, mean, now)
        return flat, before.rule
    decoded: list[Decoded] = []
    for k, (one, weight) in enumerate(zip(used, weights, strict=True)):
        delta = turned(state, one, decode(one, layout, round_of(state, one, rules), rules), rules)
        if rules.aggregator.needs == "sum":
            for name, total in mean.items():
                total.add_(delta[name].mul(weight))
            continue
        decoded.append(Decoded(island=k, delta=delta, weight=weight, round=before.version))
    if rules.aggregator.needs == "sum":
        return flat, before.rule
    context = Context(
        start=layout.views(before.weights),
        round=rules.round_of("", 0, fragment, before.version, last=False),
        state=dict(before.rule),
    )
    try:
        made = rules.aggregator.combine(decoded, context)
    except (ValueError, ArithmeticError) as error:
        raise PayloadError(f"the rule of aggregation can't use them: {error}") from error
    if made.residuals:
        raise ConfigError(f"sync.aggregator = {rules.aggregator!r} changes frozen weights, which no snapshot holds")
    for name, view in mean.items():
        view.copy_(made.delta[name])
    return flat, made.state


def turned(state: ChainState, one: Contribution, delta: Delta, rules: ChainRules) -> Delta:
    """A stale Delta as the mode of the run turns it to the outer momentum."""
    h = one.header
    if rules.turn is None:
        return delta
    outer = state.fragments[h.fragment].outer
    momentum = [outer.get(f"{OUTER}.{k}.momentum_buffer") for k in range(len(delta))]
    changed = rules.turn(list(delta.values()), momentum, state.staleness(h.fragment, h.base))
    return dict(zip(delta, changed, strict=True))


@torch.no_grad()
def step(before: FragmentState, update: Tensor, layout: Layout, rules: ChainRules) -> FragmentState:
    """The outer step along `update`."""
    weights = before.weights.clone()
    params = list(layout.views(weights).values())
    optimizer = rules.outer.build(params)
    optimizer_state.from_tensors(optimizer, OUTER, dict(before.outer), dict(before.outer_values))
    for p, grad in zip(params, layout.views(update).values(), strict=True):
        p.grad = grad
    optimizer.step()
    tensors, values = optimizer_state.to_tensors(optimizer, OUTER)
    return dataclasses.replace(before, weights=weights, outer=tensors, outer_values=values, version=before.version + 1)


def _steps(
    state: ChainState, commit: Commit, used: list[Contribution], rules: ChainRules
) -> tuple[tuple[FragmentState, ...], list[Change]]:
    """Outer steps of the fragments that something was contributed to. Raises PayloadError."""
    after, changes = list(state.fragments), list[Change]()
    for index, before in enumerate(state.fragments):
        here = [(c, u.weight) for c, u in zip(used, commit.used, strict=True) if c.header.fragment == index]
        trained = [(c, weight) for c, weight in here if weight > 0]
        if len(trained) < max(1, rules.aggregator.fewest):
            continue  # momentum alone must not move the weights
        mean, rule = mean_of(state, [c for c, _ in trained], [w for _, w in trained], rules)
        new = step(before, mean.mul_(commit.scale), rules.layouts[index], rules)
        if not bool(new.weights.isfinite().all()):
            raise PayloadError(f"fragment {index} would not be finite")
        norms = (*before.norms, {c.header.inc: c.header.norm for c, _ in trained})[-NORM_ROUNDS:]
        after[index] = dataclasses.replace(new, rule=rule, norms=norms)
        changes.append(Change(fragment=index, old=before.weights, new=new.weights))
    return tuple(after), changes


def _settled(state: ChainState, used: list[Contribution]) -> dict[str, Member]:
    members = dict(state.members)
    for h in (c.header for c in used):
        if h.inc not in members:
            continue
        member = leases.settle(members[h.inc], h.blocks)
        finished = sorted({*member.finished, h.fragment}) if h.last else member.finished
        members[h.inc] = dataclasses.replace(
            member, settled=h.seq, finished=tuple(finished), expected_s=h.expected_s or member.expected_s
        )
    return members


def _announced(state: ChainState, commit: Commit, rules: ChainRules) -> tuple:
    known, shot = state.snapshots, commit.snapshot
    if shot is None or (known and shot.version <= known[-1].version):
        return known
    return (*known, shot)[-rules.keep :]


def _advanced(after: ChainState, raw: bytes, rules: ChainRules, before: ChainState) -> ChainState:
    """`after` as the version that follows `before`: what is older than S versions is forgotten."""
    version = before.version + 1
    here = before.seen(before.version)
    assert here is not None
    oldest = version - rules.stale
    return dataclasses.replace(
        after,
        version=version,
        prev=text.sha256(raw),
        anchors={v: seen for v, seen in {**before.anchors, before.version: here}.items() if v >= oldest},
        gone={inc: v for inc, v in after.gone.items() if v >= oldest},
    )


def _readable(raw: bytes) -> Commit | None:
    try:
        return Commit.read(raw)
    except PayloadError:
        return None


def _used_one(state: ChainState, c: Contribution, weight: float) -> UsedOne:
    h = c.header
    return UsedOne(
        inc=h.inc, seq=h.seq, fragment=h.fragment, base=h.base, tokens=h.tokens, steps=h.steps, blocks=h.blocks,
        norm=h.norm, weight=weight, staleness=state.staleness(h.fragment, h.base), nbytes=c.nbytes,
        sections={name: data for name, data in c.sections.items() if name != "delta"},
    )  # fmt: skip


def _payload(contribution: Contribution) -> Payload:
    data = contribution.payload
    return Payload(data=torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte())
