"""A committer's judgement of contributions: whose are refused, what each weighs, how large the outer step is.

Nothing here makes history: the commit holds what was decided, and the fold follows it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from statistics import median_high

from lowcomm.arrival import ArrivalRule, Moment, Pace, Waiting
from lowcomm.arrival.base import NORMS
from lowcomm.state.norms import MIN_ROUNDS, large_for_its_work
from lowcomm.store import fold, leases
from lowcomm.store.chain_state import ChainState
from lowcomm.store.contribution import Contribution
from lowcomm.store.rules import ChainRules, Policy
from lowcomm.store.watch import Watch
from lowcomm.types import PayloadError


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
        here = [o.header for o in used if o.header.inc != h.inc and o.header.fragment == h.fragment]
        others = [o.norm for o in here]
        if bound is None or not others:
            continue
        early = len(rounds) < MIN_ROUNDS
        if early and not large_for_its_work(h.norm, h.steps, [(o.norm, o.steps) for o in here], bound):
            continue
        everyone = _median([n for row in rounds for n in row.values()])
        own = _median([row[h.inc] for row in rounds if h.inc in row])
        usual = max(everyone, own, _median(others))
        if usual > 0 and h.norm > bound * usual:
            found[h.inc] = f"the norm of its Delta, {h.norm:.6g}, is above {bound:g} times the usual {usual:.6g}"
    return found


def weigh(
    state: ChainState, used: Sequence[Contribution], rules: ChainRules, policy: Policy
) -> tuple[list[float], float]:
    """Weights of what a commit uses, and its scale."""
    rule = policy.rule
    if rule is None:
        return weights_of(state, used, rules, policy), scale_of(used, policy)
    weights, scales = [0.0] * len(used), dict[int, float]()
    for fragment in sorted({c.header.fragment for c in used}):
        here = [k for k, c in enumerate(used) if c.header.fragment == fragment]
        raw, scale = _by_rule(state, [used[k] for k in here], rules, rule)
        total = math.fsum(raw)
        if total > 0:
            scales[fragment] = scale * total
            for k, w in zip(here, raw, strict=True):
                weights[k] = w / total
    most = max(scales.values(), default=0.0)
    if most <= 0:
        return [0.0] * len(used), 1.0
    # a commit has one scale: fragments that are to move less have weights that add up to less
    return [w * scales.get(c.header.fragment, 0.0) / most for c, w in zip(used, weights, strict=True)], most


def _by_rule(
    state: ChainState, here: Sequence[Contribution], rules: ChainRules, rule: ArrivalRule
) -> tuple[list[float], float]:
    """What contributions to one fragment count, and the scale of their sum."""
    fragment = here[0].header.fragment
    wanted = {inc for inc, m in state.members.items() if fragment in leases.wanted_of(state, m, rules)}
    now = moment(state, here, wanted, rules=rules)
    raw = [rule.weight(one, now) for one in now.here]
    total = math.fsum(raw)
    return raw, rule.scale(now.here, total) if total > 0 else 0.0


def moment(
    state: ChainState,
    here: Sequence[Contribution],
    wanted: Collection[str],
    *,
    rules: ChainRules,
    watch: Watch | None = None,
    now_s: float = 0.0,
) -> Moment:
    """What a rule is told of contributions to one fragment. wanted: members of whom any are expected; watch: what this
    committer has seen on its clock, None: no times are asked for."""
    since, waited_s = dict[str, float](), 0.0
    if watch is not None:
        since = {c.header.key: now_s - watch.first_seen.get(c.header.key, now_s) for c in here}
        waited_s = now_s - watch.waiting_since
    paces = {inc: Pace(m.expected_s) for inc, m in state.members.items() if m.expected_s > 0}
    waiting: list[Waiting] = []
    for one, tokens in zip(here, tokens_of(here, rules), strict=True):
        h = one.header
        if h.expected_s > 0:
            paces[h.inc] = Pace(0.0).then(h.expected_s, h.tokens, h.steps)
        waiting.append(
            Waiting(
                author=h.inc, tokens=tokens, steps=h.steps, staleness=state.staleness(h.fragment, h.base), norm=h.norm,
                waited_s=since.get(h.key, 0.0),
            )
        )  # fmt: skip
    members = frozenset(wanted) | {one.author for one in waiting}
    norms: dict[str, list[float]] = {}
    rows = state.fragments[here[0].header.fragment].norms if here else ()
    for row in rows[-NORMS:]:
        for inc, norm in row.items():
            norms.setdefault(inc, []).append(norm)
    usual = math.fsum(rows[-1].values()) / len(rows[-1]) if rows and rows[-1] else 0.0
    return Moment(here=tuple(waiting), members=members, paces=paces, norms=norms, usual_norm=usual, waited_s=waited_s)


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
