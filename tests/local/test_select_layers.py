"""Selective layers by gradient: who is chosen, that nothing else moves, what is sent, its reduction, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lowcomm.aggregate import Aggregator
from lowcomm.aggregate.lora import FedIT, FedSA, SenderMean
from lowcomm.codec import Codec, Fp32, LargestLayers, Shared
from lowcomm.local import Objective, SelectLayers
from lowcomm.local.select_layers import layer_of
from lowcomm.model import LoRA
from lowcomm.state.spec import Clients
from lowcomm.types import ConfigError
from tests.support import lora_toy, toy

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")
BUDGET = 2 * 4 * 4 * (16 + 16)
"""Two of the square layers at rank 4."""


def islands(objective: Objective | None, rule: Aggregator, codec: Codec | None = None) -> lora_toy.Islands:
    models = [lora_toy.tuned(lora_toy.llama(), LoRA(rank=4, targets=TARGETS)) for _ in range(2)]
    return lora_toy.Islands(models, rule, codec=codec or Fp32(), every=3, clients=Clients(objective=objective))


def trained(run: lora_toy.Islands, island: int) -> set[str]:
    """Layers that are not where this round began."""
    start = run.sync.weights()
    held = run.sync.replicas[island].params
    return {layer_of(n) for n, p in held.items() if not torch.equal(p.detach().float(), start[n])}


def size_bytes(run: lora_toy.Islands, layers: set[str]) -> int:
    return sum(4 * w.numel() for n, w in run.sync.weights().items() if layer_of(n) in layers)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.floats(0, 9).map(lambda x: x if x > 1e-15 else 0.0)), min_size=1, max_size=8
    ),
    st.integers(4, 500),
)
def test_the_largest_per_byte_are_taken_as_long_as_they_fit(layers: list[tuple[int, float]], budget: int) -> None:
    grads = {f"m.{i}.lora_A.default.weight": torch.full((n,), size) for i, (n, size) in enumerate(layers)}
    start = {n: torch.zeros_like(g) for n, g in grads.items()}
    left = dict(grads)
    SelectLayers(budget_bytes=budget).correct(left, start, start, {})
    used = sum(4 * g.numel() for g in left.values())
    assert left and (used <= budget or len(left) == 1)
    strength = {n: float(g[0]) for n, g in grads.items()}
    for name in grads.keys() - left.keys():  # what was passed over is weaker than all that is left, or did not fit
        stronger = sum(4 * grads[n].numel() for n in left if strength[n] >= strength[name])
        assert stronger + 4 * grads[name].numel() > budget
    assert max(strength.values()) in [strength[n] for n in left]


def test_the_choice_holds_for_the_round_whatever_later_gradients_say() -> None:
    names = [f"m.{i}.lora_{x}.default.weight" for i in range(3) for x in "AB"]
    start = {n: torch.zeros(8) for n in names}
    local = {**start, names[2]: torch.ones(8)}  # one factor of layer 1 has moved
    grads = {n: torch.full((8,), 9.0 if ".1." not in n else 0.1) for n in names}
    SelectLayers(budget_bytes=1000).correct(grads, local, start, {})
    assert set(grads) == {names[2], names[3]}


def test_islands_train_their_own_choice_and_send_it() -> None:
    run = islands(SelectLayers(budget_bytes=BUDGET), SenderMean(rank=4), LargestLayers(budget_bytes=BUDGET))
    choices: list[tuple[set[str], ...]] = []
    for _ in range(4):
        for step in range(3):
            if step == 2:
                choices.append(tuple(trained(run, k) for k in range(2)))
                before = {n: w.clone() for n, w in run.sync.weights().items()}
            run.step()
        moved = {layer_of(n) for n, w in run.sync.weights().items() if not torch.equal(w, before[n])}
        assert moved == choices[-1][0] | choices[-1][1]  # neither old moments nor weight decay move more
    everything = {layer_of(n) for n in run.sync.weights()}
    for chosen in itertools.chain(*choices):
        assert chosen and chosen < everything and size_bytes(run, chosen) <= BUDGET


def weights(run: lora_toy.Islands) -> Tensor:
    for _ in range(6):
        run.step()
    return toy.flat(list(run.sync.weights().values()))


def test_a_budget_for_everything_is_plain_training_bit_for_bit() -> None:
    plain = weights(islands(None, FedIT(rank=4)))
    assert torch.equal(weights(islands(SelectLayers(budget_bytes=10**9), FedIT(rank=4))), plain)
    assert not torch.equal(weights(islands(SelectLayers(budget_bytes=BUDGET), FedIT(rank=4))), plain)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sync\.objective\.budget_bytes = 3 is not allowed: 4 or more"):
        SelectLayers(budget_bytes=3).check()
    with pytest.raises(ConfigError, match=r"codec = Shared is not allowed with clients\.objective = SelectLayers"):
        islands(SelectLayers(), FedSA(rank=4), Shared())
