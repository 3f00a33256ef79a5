"""Distributed Lion: the optimizer's equations, both directions in one bit, votes and means."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from lowcomm import LocalSGD
from lowcomm.codec import ErrorFeedback, Lion
from lowcomm.codec.flat import flatten
from lowcomm.outer import SGD
from lowcomm.transport import Simulated
from lowcomm.types import ConfigError, Delta, PayloadError, Round

ROUND = Round(index=0, step=8, fragments=(0,), seed=99, island=1)


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 50).view(10, 5))
        self.b = nn.Parameter(torch.zeros(3))


def deltas(seed: int = 0) -> Delta:
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(70, 90, generator=g), "b": torch.randn(3, generator=g), "none": torch.zeros(0)}


def gradient(island: int, step: int, p: Tensor) -> Tensor:
    return torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * island + step)) + 0.3 * p.detach()


def lion_step(params: list[Tensor], momenta: list[Tensor], grads: list[Tensor], lr: float) -> None:
    """Lion as published (arXiv 2302.06675), without weight decay."""
    for p, m, g in zip(params, momenta, grads, strict=True):
        p -= lr * torch.sign(0.9 * m + 0.1 * g)
        m.mul_(0.99).add_(g, alpha=0.01)


def train(islands: int, codec: Lion, steps: int, lr: float = 0.01) -> tuple[LocalSGD, list[Weights]]:
    """H = 1 and plain gradient steps inside: the codec is the optimizer."""
    models = [Weights() for _ in range(islands)]
    inners = [torch.optim.SGD(m.parameters(), lr=1.0) for m in models]
    sync = LocalSGD(
        models, inners, every=1, outer=SGD(lr=lr), codec=ErrorFeedback(codec=codec), transport=Simulated(islands)
    )
    for step in range(steps):
        for island, (model, inner) in enumerate(zip(models, inners, strict=True)):
            for p in model.parameters():
                p.grad = gradient(island, step, p)
            sync.count_tokens(1, island)
            inner.step()
    return sync, models


def test_one_island_is_lion() -> None:
    _, (model,) = train(1, Lion(), 40)
    other = Weights()
    params = [p.data for p in other.parameters()]
    momenta = [torch.zeros_like(p) for p in params]
    for step in range(40):
        lion_step(params, momenta, [gradient(0, step, p) for p in params], 0.01)
    for p, wanted in zip(model.parameters(), params, strict=True):
        torch.testing.assert_close(p.data, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("exchange", ["reduce", "gather"])
def test_three_islands_vote_or_average(exchange: str) -> None:
    _, models = train(3, Lion(exchange=exchange), 25)  # pyright: ignore[reportArgumentType]
    other = Weights()
    params = [p.data for p in other.parameters()]
    momenta = [[torch.zeros_like(p) for p in params] for _ in range(3)]
    for step in range(25):
        grads = [[gradient(k, step, p) for p in params] for k in range(3)]
        for i, p in enumerate(params):
            signs = torch.stack([torch.sign(0.9 * momenta[k][i] + 0.1 * grads[k][i]) for k in range(3)]).sum(dim=0)
            p -= 0.01 * (torch.sign(signs) if exchange == "reduce" else signs / 3)
        for k in range(3):
            for m, g in zip(momenta[k], grads[k], strict=True):
                m.mul_(0.99).add_(g, alpha=0.01)
    for model in models:
        for p, wanted in zip(model.parameters(), params, strict=True):
            torch.testing.assert_close(p.data, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("exchange", "halves"), [("reduce", False), ("gather", True)])
def test_two_islands_vote_as_well(exchange: str, halves: bool) -> None:
    """A tie goes to one of them; a mean is 0 there."""
    sync, _ = train(2, Lion(exchange=exchange), 1)  # pyright: ignore[reportArgumentType]
    pairs = zip(sync.weights().values(), Weights().parameters(), strict=True)
    moved = torch.cat([(w - p.detach()).flatten() for w, p in pairs])
    assert bool((moved.abs() < 1e-6).any()) is halves
    assert float(moved.abs().amax()) == pytest.approx(0.01, rel=1e-3)


def test_no_momentum_is_the_sign_of_the_gradient() -> None:
    delta = deltas()
    wanted = torch.where(flatten(delta) >= 0, 1.0, -1.0)
    plain = Lion()
    assert torch.equal(flatten(plain.decode(plain.encode(delta, {}, ROUND)[0], delta)), wanted)
    feedback = ErrorFeedback(codec=Lion(beta1=0.0, beta2=0.0))
    state = feedback.init(delta)
    for index in range(2):
        payload, state = feedback.encode(delta, state, dataclasses.replace(ROUND, index=index))
        assert torch.equal(flatten(feedback.decode(payload, delta)), wanted)


def test_error_feedback_keeps_the_momentum() -> None:
    feedback, delta = ErrorFeedback(codec=Lion(beta1=0.8, beta2=0.9)), deltas()
    state, m = feedback.init(delta), torch.zeros(flatten(delta).numel())
    for index in range(3):
        delta = deltas(index)
        g = flatten(delta)
        payload, state = feedback.encode(delta, state, dataclasses.replace(ROUND, index=index))
        sent = flatten(feedback.decode(payload, delta))
        clear = (0.8 * m + 0.2 * g).abs() > 1e-6
        assert torch.equal(sent[clear], torch.sign(0.8 * m + 0.2 * g)[clear])
        m = 0.9 * m + 0.1 * g
        torch.testing.assert_close(state["error"], m, rtol=1e-5, atol=1e-6)


def test_both_directions_have_one_bit() -> None:
    """4 islands, vote: 2 (n - 1) / n payloads each way."""
    models = [nn.Linear(512, 256, bias=False) for _ in range(4)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    inners = [torch.optim.SGD(m.parameters(), lr=1.0) for m in models]
    sync = LocalSGD(models, inners, every=1, outer=SGD(lr=0.1), codec=ErrorFeedback(codec=Lion()))
    before = sync.transport.sent_bytes[0]
    for model, inner in zip(models, inners, strict=True):
        model.weight.grad = torch.randn(256, 512)
        inner.step()
    assert 24_576 < sync.transport.sent_bytes[0] - before < 24_576 + 6 * 64 + 500  # 6 / 4 of 131072 / 8 bytes
    assert sync.transport.received_bytes[0] == sync.transport.sent_bytes[0]
    delta = {"w": torch.zeros(1_000_000)}
    assert Lion().encode(delta, {}, ROUND)[0].nbytes == 64 + 125_000


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_an_input_that_is_not_finite_is_named(bad: float) -> None:
    delta = deltas()
    delta["b"][1] = bad
    feedback = ErrorFeedback(codec=Lion())
    for codec, state in ((Lion(), {}), (feedback, feedback.init(delta))):
        with pytest.raises(PayloadError, match="tensor b of the pseudo-gradient is NaN or infinite"):
            codec.encode(delta, state, ROUND)


@pytest.mark.parametrize(("codec", "field"), [(Lion(beta1=1.0), "beta1"), (Lion(beta2=-0.1), "beta2")])
def test_settings_out_of_range(codec: Lion, field: str) -> None:
    with pytest.raises(ConfigError, match=f"codec.{field} = "):
        codec.check()
