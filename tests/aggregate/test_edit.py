"""EDiT's gate: its formula over rounds, who is left out, the roll-back, and what it reduces to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lowcomm.aggregate import Aggregate, Context, EDiT, Mean
from lowcomm.aggregate.base import State
from lowcomm.types import ConfigError, Contribution, Round


def heard(rows: Tensor) -> list[Contribution]:
    return [Contribution(island=k, delta={"w": r.clone()}, weight=1 / len(rows), round=0) for k, r in enumerate(rows)]


def combined(rule: EDiT, rows: Tensor, state: State) -> Aggregate:
    now = Round(index=0, step=4, fragments=(0,), seed=1)
    return rule.combine(heard(rows), Context(start={"w": rows[0]}, round=now, state=state))


def rounds_of(islands: int, count: int, seed: int = 0) -> list[Tensor]:
    """Norms near 1, 2, ... by island, each a little different in every round."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        rows = torch.randn(islands, 40, generator=generator)
        sizes = torch.arange(1, islands + 1) * (1 + 0.02 * torch.randn(islands, generator=generator))
        found.append(rows / rows.norm(dim=1, keepdim=True) * sizes[:, None])
    return found


def test_weights_are_a_softmax_of_norms_and_the_mean_is_cut() -> None:
    rows = rounds_of(3, 1)[0]
    made = combined(EDiT(sharpness=0.7, radius=0.2), rows, {})
    shares = torch.softmax(-0.7 * rows.norm(dim=1), dim=0)
    mean = (shares[:, None] * rows).sum(dim=0)
    assert float(mean.norm()) > 0.2
    torch.testing.assert_close(made.delta["w"], mean * (0.2 / mean.norm()), rtol=1e-5, atol=1e-6)


def test_switched_off_it_is_the_uniform_mean_bit_for_bit() -> None:
    rule, state = EDiT(spike=None, sharpness=0.0, radius=None), State()
    for rows in rounds_of(4, 3):
        made = combined(rule, rows, state)
        assert torch.equal(made.delta["w"], Mean()(heard(rows))["w"])
        state = made.state


def test_a_spike_is_left_out_and_does_not_move_what_is_usual() -> None:
    rule, state = EDiT(warmup_rounds=5, sharpness=0.0, radius=None), State()
    for rows in rounds_of(3, 12):
        made = combined(rule, rows, state)
        assert not any("spike" in note for note in made.notes)
        state = made.state
    rows = rounds_of(3, 1, seed=1)[0]
    rows[1] *= 3
    made = combined(rule, rows, state)
    assert any("island 1 was left out" in note for note in made.notes)
    torch.testing.assert_close(made.delta["w"], (rows[0] + rows[2]) / 2)
    assert torch.equal(made.state["usual"][1], state["usual"][1])
    assert not torch.equal(made.state["usual"][0], state["usual"][0])


def test_nobody_is_left_out_before_norms_are_known() -> None:
    rule, state = EDiT(warmup_rounds=50), State()
    for number, rows in enumerate(rounds_of(3, 12)):
        rows[1] *= 5 if number == 11 else 1
        made = combined(rule, rows, state)
        assert not any("spike" in note for note in made.notes)
        state = made.state


def test_a_round_of_spikes_is_rolled_back() -> None:
    rule, state = EDiT(warmup_rounds=5), State()
    for rows in rounds_of(2, 12):
        state = combined(rule, rows, state).state
    made = combined(rule, 9 * rounds_of(2, 1, seed=1)[0], state)
    assert not made.delta["w"].any()
    assert any("rolled back" in note for note in made.notes)
    assert torch.equal(made.state["usual"], state["usual"])


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (EDiT(spike=0.0), "spike"),
        (EDiT(radius=-1.0), "radius"),
        (EDiT(sharpness=math.inf), "sharpness"),
        (EDiT(decay=0.0), "decay"),
        (EDiT(decay=1.0), "decay"),
        (EDiT(warmup_rounds=0), "warmup_rounds"),
    ],
)
def test_settings_out_of_range_are_refused(rule: EDiT, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"sync\.aggregator\.{field} = .* Fix: "):
        rule.check()


def test_one_island_is_too_few() -> None:
    with pytest.raises(ConfigError, match="EDiT needs 2 islands"):
        EDiT().check_islands(1)
    EDiT().check_islands(2)
