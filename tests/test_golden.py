"""Golden trajectories: the losses of a fixed problem under every outer optimizer and schedule.

`pytest tests/test_golden.py --regenerate-golden` rewrites them; look at the diff before you commit it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.methods import OUTERS, SCHEDULES, name
from tests.support import toy

GOLDEN = Path(__file__).parent / "golden"
CASES = {name(m): m for m in (*OUTERS, *SCHEDULES)}


@pytest.mark.parametrize("case", CASES)
def test_trajectory_is_the_golden_one(case: str, regenerate_golden: bool) -> None:
    method = CASES[case]
    sync = toy.build(2, outer=method) if method in OUTERS else toy.build(2, schedule=method)  # type: ignore[arg-type]
    losses = [toy.train_step(sync, step) for step in range(60)]
    path = GOLDEN / f"{case}.json"
    if regenerate_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(losses) + "\n", encoding="utf-8")
    expected = json.loads(path.read_text(encoding="utf-8"))
    # CPUs differ in vector width and fused multiply-add, and AdamW amplifies the last bit over 60 steps
    flat, wanted = ([x for pair in rows for x in pair] for rows in (losses, expected))
    assert flat == pytest.approx(wanted, rel=1e-3)
