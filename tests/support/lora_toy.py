"""Tiny tuned models, islands that train them, and dense effective weights to compare with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowcomm.aggregate import Aggregator
from lowcomm.aggregate.lora import LoraRule
from lowcomm.codec import Codec
from lowcomm.model import LoRA
from lowcomm.model.tuning import Tuning
from lowcomm.outer import SGD, Outer
from lowcomm.state.spec import Clients
from lowcomm.sync import LocalSGD

WIDTH, VOCAB, LENGTH = 16, 24, 8


def llama(tied: bool = True, seed: int = 0) -> Any:
    """Linear layers, one block."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=20,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(settings).eval()


def gpt2(seed: int = 0) -> Any:
    """Conv1D layers: weights are [in, out]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_layer=1,
        n_head=2,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(settings).eval()


def tuned(base: Any, tuning: Tuning, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tuning.apply(base)


def by_peft(base: Any, tuning: LoRA, seed: int = 0) -> nn.Module:
    """As a user's own peft call would do it, tied weights included."""
    import peft

    settings = peft.LoraConfig(
        r=tuning.rank, lora_alpha=tuning.alpha, target_modules=list(tuning.targets), task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        return peft.get_peft_model(base, settings)


def layers(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if hasattr(m, "base_layer") and hasattr(m, "lora_A")}


def effective(model: nn.Module) -> dict[str, Tensor]:
    """fp64 weight of each tuned layer as its forward sees it: base plus peft's own dW."""
    return {
        n: m.base_layer.weight.detach().double() + m.get_delta_weight("default").detach().double()
        for n, m in layers(model).items()
    }


def batch(island: int, step: int) -> Tensor:
    """Token ids [3, LENGTH], each island with a taste of its own."""
    generator = torch.Generator().manual_seed(1000 * island + step)
    ids = torch.randint(0, VOCAB, (3, LENGTH), generator=generator)
    return torch.where(torch.rand(3, LENGTH, generator=generator) < 0.5, torch.full_like(ids, 2 + island), ids)


class Islands:
    """A LocalSGD over simulated islands; remembers effective weights and trained values just before every sync."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        rule: Aggregator,
        *,
        every: int = 3,
        codec: Codec | None = None,
        outer: Outer | None = None,
        lr: float = 0.05,
        clients: Clients | None = None,
    ) -> None:
        self.models = list(models)
        inners = [torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=lr) for m in models]
        self.local: list[dict[str, Tensor]] = [{} for _ in models]
        self.trained: list[dict[str, Tensor]] = [{} for _ in models]
        for i, inner in enumerate(inners):  # before LocalSGD's own hook
            inner.register_step_post_hook(lambda *_, i=i: self._remember(i))
        self.sync = LocalSGD(
            self.models, inners, every=every, outer=outer or SGD(lr=1.0), aggregator=rule, codec=codec, clients=clients
        )
        self.reports: list[Any] = []
        self.sync.listeners.append(self.reports.append)
        self.tokens = [float(1 + i) for i in range(len(models))]
        self.steps = 0

    def _remember(self, i: int) -> None:
        self.local[i] = effective(self.models[i])
        held = self.models[i].named_parameters()
        self.trained[i] = {n: p.detach().clone() for n, p in held if p.requires_grad}

    def step(self) -> None:
        for i, (model, replica) in enumerate(zip(self.models, self.sync.replicas, strict=True)):
            ids = batch(i, self.steps)
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            self.sync.count_tokens(int(self.tokens[i]), i)
            replica.inner.step()
            replica.inner.zero_grad()
        self.steps += 1

    def round(self) -> None:
        before = self.sync.round
        while self.sync.round == before:
            self.step()

    @torch.no_grad()
    def loss(self) -> float:
        """Sum over the islands, on text that none has seen."""
        held = [(m, batch(i, 99)) for i, m in enumerate(self.models)]
        return sum(float(m(input_ids=ids, labels=ids).loss) for m, ids in held)

    def target(self, base: dict[str, Tensor]) -> dict[str, Tensor]:
        """base + sum_k p_k (what island k had made of it): the dense target of the round that just ended."""
        total = sum(self.tokens)
        return {
            n: b + sum(t / total * (self.local[i][n] - b) for i, t in enumerate(self.tokens)) for n, b in base.items()
        }


def bases(model: nn.Module) -> dict[str, Tensor]:
    return {n: m.base_layer.weight.detach().double().clone() for n, m in layers(model).items()}


def off(wanted: dict[str, Tensor], got: dict[str, Tensor], origin: dict[str, Tensor]) -> float:
    """Largest relative error over the layers, of what was added to `origin`."""
    return max(float((wanted[n] - got[n]).norm() / (wanted[n] - origin[n]).norm().clamp(min=1e-30)) for n in wanted)


def lora(rule: LoraRule, targets: tuple[str, ...], train: str = "AB") -> LoRA:
    return LoRA(rank=rule.rank, alpha=rule.alpha, rslora=rule.rslora, targets=targets, train=train)  # pyright: ignore[reportArgumentType]
