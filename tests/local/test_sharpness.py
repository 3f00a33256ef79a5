"""Sharpness-aware local steps: the step uphill, the way back, and what the objective is without a length."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lowcomm.island import AdamW, InnerConfig, PlainIsland
from lowcomm.island.sharp import SharpIsland
from lowcomm.local import SharpnessAware, ascend
from lowcomm.state.spec import Clients
from lowcomm.sync import LocalSGD
from lowcomm.types import ConfigError
from tests.support import toy


class Table(nn.Module):
    """Logits of the next token by the token."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.rows[x], 0.2, self.training)


def losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten(), reduction="none")


def batches(step: int) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(step)
    return [(torch.randint(0, 5, (2, 7), generator=draws), torch.randint(0, 5, (2, 7), generator=draws))] * 2


def trained(kind: type[PlainIsland], rho: float = 0.0, steps: int = 4) -> tuple[Tensor, list[float]]:
    model = Table()
    island = kind(model, InnerConfig(optimizer=AdamW(lr=0.1)), steps=8, seed=3, losses=losses)
    if isinstance(island, SharpIsland):
        island.ascend = partial(ascend, rho=rho)
    seen = []
    for step in range(steps):
        seen.append(island.backward(batches(step)))
        island.update(step)
    return model.rows.detach(), seen


def test_without_a_length_it_is_plain_training_bit_for_bit() -> None:
    plain, sharp = trained(PlainIsland), trained(SharpIsland, 0.0)
    assert torch.equal(plain[0], sharp[0])
    assert plain[1] == sharp[1]
    assert not torch.equal(trained(SharpIsland, 0.5)[0], plain[0])


def test_the_gradient_is_that_uphill_and_weights_are_put_back() -> None:
    model = Table().eval()
    island = SharpIsland(model, InnerConfig(), steps=8, seed=3, losses=losses)
    island.ascend = partial(ascend, rho=0.3)
    before = model.rows.detach().clone()
    island.backward(batches(0))
    assert torch.equal(model.rows.detach(), before)
    at = before.clone().requires_grad_()

    def mean(rows: Tensor) -> Tensor:
        found = [nn.functional.cross_entropy(rows[x].flatten(0, -2), y.flatten()) for x, y in batches(0)]
        return torch.stack(found).mean()

    (g,) = torch.autograd.grad(mean(at), at)
    uphill = (before + 0.3 * g / g.norm()).requires_grad_()
    (expected,) = torch.autograd.grad(mean(uphill), uphill)
    assert model.rows.grad is not None
    torch.testing.assert_close(model.rows.grad, expected)


def test_ascend_moves_by_rho_in_all_together_and_leaves_what_has_no_gradient() -> None:
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))]
    params[0].grad, params[1].grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0])
    kept = ascend(params, 0.5)
    assert math.isclose(
        sum(float((p.detach() - k).square().sum()) for p, k in zip(params, kept, strict=True)), 0.25, rel_tol=1e-6
    )
    assert torch.equal(params[2].detach(), torch.ones(2))
    assert all(p.grad is None for p in params)


def test_a_loop_of_ones_own_is_told_to_take_both_passes_itself() -> None:
    model = toy.Net()
    with pytest.raises(ConfigError, match=r"clients\.objective = SharpnessAware .* lowcomm\.local\.ascend"):
        LocalSGD(model, toy.sgd(model), every=2, clients=Clients(objective=SharpnessAware()))
    for rho in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"sync\.objective\.rho = .* Fix: "):
            SharpnessAware(rho=rho).check()
