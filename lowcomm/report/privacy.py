"""Figures of privacy in words: what an epsilon bounds, and how well an attack did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lowcomm.report.load import Run, number
from lowcomm.report.sections import text

GRADES = ((1.0, "strong"), (3.0, "moderate"), (10.0, "weak"), (math.inf, "next to nothing"))
"""Epsilons up to which a promise is called so."""
MOST = 1e6
"""Odds that change more than this are not worth a number."""
NORMAL_95 = 1.96
"""Standard errors to each side that hold 95 %."""


def epsilon_in_words(epsilon: float | None, level: str = "example") -> str:
    """What a reader can do with an epsilon. level: "example" (sequences) or "client". None: infinite."""
    what = "a given client took part" if level == "client" else "a given sequence or conversation was used"
    if epsilon is None or math.isinf(epsilon):
        return f"no bound on what an observer learns of whether {what}: no privacy"
    grade = next(word for most, word in GRADES if epsilon <= most)
    odds = math.exp(min(epsilon, 700.0))
    times = f"{odds:.3g} times" if odds <= MOST else f"more than {MOST:,.0f} times"
    return (
        f"an observer's odds that {what} change by at most e^epsilon = {times}: {grade}"
        f"{'' if grade == 'strong' else '; epsilon below 1 is strong'}"
    )


def spent_in_words(spent: Mapping[str, Any]) -> str:
    """The epsilon of a run (`privacy` of summary.json) in one line."""
    epsilon = number(spent.get("epsilon_total"))
    shown = "infinite" if epsilon is None else f"{epsilon:.3g}"
    delta = number(spent.get("delta"))
    at = "" if delta is None else f" at delta {delta:g}"
    return f"privacy: epsilon {shown}{at}: {epsilon_in_words(epsilon, str(spent.get('level', 'client')))}"


def attack_in_words(membership: Mapping[str, Mapping[str, float]]) -> str:
    """The AUC of each attack with its 95 % error bar."""
    by = {attack: _area(figures) for attack, figures in membership.items()}
    return (
        f"membership inference: loss AUC {by.get('loss', '-')} (of the untuned model {by.get('untuned', '-')}), "
        f"calibrated AUC {by.get('calibrated', '-')}; 0.5 is guessing, +- is the 95 % error"
    )


def _area(figures: Mapping[str, float]) -> str:
    area, error = number(figures.get("auc")), number(figures.get("auc_error"))
    if area is None:
        return "-"
    return f"{area:.3f}" if error is None else f"{area:.3f} +- {NORMAL_95 * error:.3f}"


def privacy_section(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A paragraph for each run with noise or an attack; empty where there is none."""
    items: list[str] = []
    for run, name in zip(runs, names, strict=True):
        spent, attacked = run.summary.get("privacy"), run.clients.get("membership")
        prefix = f"{name}: " if len(runs) > 1 else ""
        if isinstance(spent, dict):
            items.append(prefix + spent_in_words(spent))
        if isinstance(attacked, dict):
            items.append(prefix + attack_in_words({k: v for k, v in attacked.items() if isinstance(v, dict)}))
    if not items:
        return ""
    return f'<h2>Privacy</h2><div class="panel tile">{"".join(f"<p>{text(item)}</p>" for item in items)}</div>'
