"""A committer's judgement of contributions: whose are refused, what each weighs, how large the outer step is.

Nothing here makes history: the commit holds what was decided, and the fold follows it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median_high

from lowcomm.store import fold
from lowcomm.store.chain_state import ChainState
from lowcomm.store.contribution import Contribution
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.types import PayloadError

MIN_ROUNDS = 3
"""Rounds whose norms must be known before anybody is judged by them."""


def refusal(state: ChainState, one: Contribution, rules: ChainRules) -> str | None:
    """Why a contribution can't be used by anybody; None: it decodes and is finite."""
    try:
        delta = fold.decode(one, rules.layouts[one.header.fragment], fold.round_of(state, one, rules), rules)
    except PayloadError as error:
        return str(error)
    bad = [name for name, value in delta.items() if not bool(value.isfinite().all())]
    return f"the decoded {bad[0]} is not finite" if bad else None


def too_large(state: ChainState, used: Sequence[Contribution], bound: float | None) -> dict[str, str]:
    """Members whose norm is far above all that are known: their own, everybody's, the others' now; with the reason."""
    found: dict[str, str] = {}
    for one in used if bound is not None else ():
        h = one.header
        rounds = state.fragments[h.fragment].norms
        others = [o.header.norm for o in used if o.header.inc != h.inc and o.header.fragment == h.fragment]
        if bound is None or len(rounds) < MIN_ROUNDS or not others:
            continue
        everyone = _median([n for row in rounds for n in row.values()])
        own = _median([row[h.inc] for row in rounds if h.inc in row])
        usual = max(everyone, own, _median(others))
        if usual > 0 and h.norm > bound * usual:
            found[h.inc] = f"the norm of its Delta, {h.norm:.6g}, is above {bound:g} times the usual {usual:.6g}"
    return found


def weights_of(state: ChainState, used: Sequence[Contribution], rules: ChainRules, policy: Policy) -> list[float]:
    """Weights by tokens times damping, which add up to 1 for each fragment; all 0 where nothing was trained."""
    weights = [0.0] * len(used)
    for fragment in {c.header.fragment for c in used}:
        here = [k for k, c in enumerate(used) if c.header.fragment == fragment]
        tokens = tokens_of([used[k] for k in here], rules)
        if not any(tokens):
            continue
        raw = rules.aggregator.weights(tokens)
        damped = [w * damping(state, used[k], policy) for k, w in zip(here, raw, strict=True)]
        for k, w in zip(here, damped, strict=True):
            weights[k] = w / math.fsum(damped)
    return weights


def tokens_of(used: Sequence[Contribution], rules: ChainRules) -> list[float]:
    """What contributions to one fragment weigh by: their tokens; the mean of the others' for a last one without any
    that holds what a codec had held back. The same for each where a fragment but the first says none at all."""
    tokens = [float(c.header.tokens) for c in used]
    if not any(tokens) and used[0].header.fragment != 0:
        return [float(c.header.norm > 0) for c in used]
    trained = [t for t in tokens if t > 0]
    usual = math.fsum(trained) / len(trained) if trained else 1.0
    rest = [c.header.last and rules.codec.holds_back for c in used]
    return [usual if t == 0 and held else t for t, held in zip(tokens, rest, strict=True)]


def damping(state: ChainState, one: Contribution, policy: Policy) -> float:
    """d(tau)."""
    tau = state.staleness(one.header.fragment, one.header.base)
    return 1.0 if policy.damping == "none" else 1 / math.sqrt(1 + tau)


def scale_of(used: Sequence[Contribution], policy: Policy) -> float:
    """Share of the outer step that a commit takes: a lone late Delta must not move the model with full weight."""
    if policy.mode == "synchronous" or policy.nominal_tokens is None or not used:
        return 1.0
    fragments = {c.header.fragment for c in used}
    sums = [sum(c.header.tokens for c in used if c.header.fragment == f) for f in fragments]
    said = [tokens for tokens in sums if tokens > 0]
    return min(1.0, min(said) / policy.nominal_tokens) if said else min(1.0, len(used) / policy.size)


def _median(norms: Sequence[float]) -> float:
    """The larger of the middle two, 0 where there is none."""
    return median_high(norms) if norms else 0.0
