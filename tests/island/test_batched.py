"""The batched simulator: what a loop over the islands trains, in one forward and backward."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowcomm.cli import main
from lowcomm.codec import ErrorFeedback, Int4
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.island import AdamW, Batch, BatchedIslands, Inner, InnerConfig, PlainIsland
from lowcomm.island.stacked import stack
from lowcomm.model import token_losses
from lowcomm.outer import Nesterov
from lowcomm.trainer import train
from lowcomm.types import ConfigError
from tests.support import runs

ISLANDS, WORDS, STEPS = 3, 23, 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


def llama(tied: bool, bias: bool = False, kv_heads: int = 4) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=kv_heads,
        intermediate_size=24, max_position_embeddings=64, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(3)
    return LlamaForCausalLM(config).train()


class Small(nn.Module):
    """The layers that Llama has not: LayerNorm, RMSNorm, a padding row, a frozen layer, biases, a root of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table = nn.Embedding(WORDS, 8, padding_idx=1)
        self.norm, self.scale = nn.LayerNorm(8), nn.RMSNorm(12)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8, bias=False), nn.Linear(8, WORDS)
        self.down.weight.requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x + self.down(self.scale(torch.tanh(self.up(self.norm(x))))))


def small_losses(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), reduction="none")


def island(model: nn.Module, losses: Callable[..., Tensor], inner: Inner) -> PlainIsland:
    return PlainIsland(model, InnerConfig(optimizer=inner, clip_norm=0.5), steps=STEPS, seed=0, losses=losses)


def work(number: int, step: int) -> list[Batch]:
    """Unequal rows, lengths and micro-batches, so that tokens differ by island."""
    generator = torch.Generator().manual_seed(1000 * number + step)
    shape = (1 + number, 5 + (number + step) % 3)
    return [
        (torch.randint(0, WORDS, shape, generator=generator), torch.randint(0, WORDS, shape, generator=generator))
        for _ in range(1 + number % 2)
    ]


def sits_out(number: int, step: int) -> bool:
    return step % 7 == 3 and number == 1


def assert_follow(model: nn.Module, losses: Callable[..., Tensor], inner: Inner) -> None:
    looped = [island(copy.deepcopy(model), losses, inner) for _ in range(ISLANDS)]
    islands = [island(copy.deepcopy(model), losses, inner) for _ in range(ISLANDS)]
    batched = BatchedIslands(islands)
    for step in range(STEPS):
        due = [k for k in range(ISLANDS) if not sits_out(k, step)]
        batches = {k: work(k, step) for k in due}
        together = batched.backward(batches)
        for k in due:
            loss = looped[k].backward(batches[k])
            assert abs(loss - together[k]) < 1e-5, (step, k)
            for p, q in zip(looped[k].params, islands[k].params, strict=True):
                assert (p.grad is None) == (q.grad is None)
                if p.grad is not None:
                    torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-5)
        batched.update(step, due)
        for k in due:
            looped[k].update(step)
            assert islands[k].grad_norm == pytest.approx(looped[k].grad_norm, rel=1e-4)
        if step == 15:  # what a sync does to an island that it left out
            looped[2].inner.state.clear()
            islands[2].inner.state.clear()
    for one, other in zip(looped, islands, strict=True):
        for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=1e-3, atol=1e-4)
        counters = [[float(s["step"]) for s in i.inner.state.values() if "step" in s] for i in (one, other)]
        assert counters[0] == counters[1]


@pytest.mark.parametrize(
    ("tied", "bias", "kv_heads"), [(True, False, 4), (False, False, 4), (True, True, 2), (False, True, 1)]
)
def test_llama_follows_the_loop(tied: bool, bias: bool, kv_heads: int) -> None:
    assert_follow(llama(tied, bias, kv_heads), token_losses, AdamW(lr=3e-3))


class Plain(Inner):
    """Not AdamW: every island steps by itself."""

    lr = 0.05

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=self.lr, momentum=0.5)

    def check(self) -> None:
        return None


@pytest.mark.parametrize("inner", [AdamW(lr=3e-3), Plain()], ids=["adamw", "sgd"])
def test_other_layers_follow_the_loop(inner: Inner) -> None:
    assert_follow(Small(), small_losses, inner)


def test_an_island_gone_astray_leaves_the_others_alone() -> None:
    islands = [island(llama(tied=True), token_losses, AdamW()) for _ in range(3)]
    batched = BatchedIslands(islands)
    with torch.no_grad():
        islands[1].params[0].fill_(torch.nan)
    losses = batched.backward({k: work(k, 0) for k in range(3)})
    assert math.isnan(losses[1]) and math.isfinite(losses[0]) and math.isfinite(losses[2])
    batched.update(0, [0, 2])
    for k in (0, 2):
        assert math.isfinite(islands[k].grad_norm)
        assert all(bool(p.isfinite().all()) for p in islands[k].params)


def test_parameters_are_views_of_the_stack() -> None:
    models = [llama(tied=True) for _ in range(2)]
    before = [p.detach().clone() for p in models[1].parameters()]
    stacked = stack(models, token_losses)
    assert len(list(stacked.parameters())) == len(before)  # tied weights are one tensor
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(1.5)
        apart = torch.cat([token_losses(m, row, row) for m, row in zip(models, ids.split(1), strict=True)])
        torch.testing.assert_close(token_losses(stacked, ids, ids), apart, rtol=1e-5, atol=1e-5)
    for p, old in zip(models[1].parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * 1.5)


def hundred(corpus: Path, run_dir: Path, **changes: object) -> RunConfig:
    # at the default rate loss peaks blow rounding up a thousandfold, on the text of some Pythons past the tolerance
    inner = InnerConfig(optimizer=AdamW(lr=1e-3))
    base = runs.small(corpus, run_dir, steps=100, islands=4, log_every=1, inner=inner, sync=SyncConfig(every=8))
    return dataclasses.replace(base, checkpoint=CheckpointConfig(export=False), **changes)  # pyright: ignore


def losses_of(run_dir: Path) -> list[tuple[int, int, float]]:
    return [(m["step"], m["island"], m["loss"]) for m in runs.metrics(run_dir) if m["event"] == "step"]


def assert_runs_follow(config: RunConfig, tmp_path: Path, tolerance: float = 1e-4) -> None:
    for batched in (False, True):
        assert train(dataclasses.replace(config, batched=batched, run_dir=tmp_path / str(batched))) == 0
    looped, together = losses_of(tmp_path / "False"), losses_of(tmp_path / "True")
    assert len(looped) == len(together) == config.steps * (config.islands or 0)
    for one, other in zip(looped, together, strict=True):
        assert one[:2] == other[:2] and abs(one[2] - other[2]) < tolerance, (one, other)
    one, other = runs.summary(tmp_path / "False"), runs.summary(tmp_path / "True")
    assert abs(one["val_loss"] - other["val_loss"]) < tolerance
    assert {k: one[k] for k in ("tokens", "rounds", "bytes_sent")} == {
        k: other[k] for k in ("tokens", "rounds", "bytes_sent")
    }


def test_hundred_steps_of_diloco(tmp_path: Path, corpus: Path) -> None:
    assert_runs_follow(hundred(corpus, tmp_path), tmp_path)


def test_hundred_steps_with_a_codec_and_error_feedback(tmp_path: Path, corpus: Path) -> None:
    """With 4 bits a rounding error can tip an element into the next code, which error feedback makes up for."""
    sync = SyncConfig(every=8, outer=Nesterov(lr=0.7, momentum=0.6), codec=ErrorFeedback(codec=Int4()))
    assert_runs_follow(hundred(corpus, tmp_path, sync=sync), tmp_path, tolerance=2e-3)


@pytest.mark.parametrize("name", ["ddp", "post_local", "streaming"])
def test_every_schedule(tmp_path: Path, corpus: Path, name: str) -> None:
    inner = InnerConfig(accumulation=2)
    assert_runs_follow(runs.variant(name, corpus, tmp_path, islands=3, log_every=1, inner=inner), tmp_path)


@pytest.mark.parametrize("name", ["local", "ddp", "streaming"])
def test_resume_is_bit_exact(tmp_path: Path, corpus: Path, name: str) -> None:
    whole = runs.variant(name, corpus, tmp_path / "whole", batched=True)
    halves = dataclasses.replace(whole, run_dir=tmp_path / "halves")
    assert train(whole) == 0
    for stop in (3, 7):
        saves = dataclasses.replace(whole.checkpoint, stop_at_step=stop)
        assert train(dataclasses.replace(halves, checkpoint=saves, resume=stop != 3)) == 3
    assert train(dataclasses.replace(halves, resume=True)) == 0
    runs.assert_same(runs.outcome(tmp_path / "halves"), runs.outcome(tmp_path / "whole"))


def test_a_looped_run_goes_on_batched(tmp_path: Path, corpus: Path) -> None:
    looped = runs.small(corpus, tmp_path / "looped")
    mixed = dataclasses.replace(looped, run_dir=tmp_path / "mixed")
    assert train(looped) == 0
    assert train(dataclasses.replace(mixed, checkpoint=dataclasses.replace(mixed.checkpoint, stop_at_step=5))) == 3
    assert train(dataclasses.replace(mixed, resume=True, batched=True)) == 0
    assert runs.summary(tmp_path / "mixed")["val_loss"] == pytest.approx(
        runs.summary(tmp_path / "looped")["val_loss"], abs=1e-4
    )


def test_one_island_is_the_loop(tmp_path: Path, corpus: Path) -> None:
    for batched in (False, True):
        assert train(runs.small(corpus, tmp_path / str(batched), islands=1, batched=batched)) == 0
    hashes = [runs.summary(tmp_path / name)["weights_sha256"] for name in ("False", "True")]
    assert hashes[0] == hashes[1]


def test_export_loads(tmp_path: Path, corpus: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert train(runs.small(corpus, tmp_path / "run", steps=4, batched=True, checkpoint=CheckpointConfig())) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "export").num_parameters() > 0


class Mixes(Small):
    """Its rows see each other."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(x - x.mean(0, keepdim=True))


class Own(Small):
    """A parameter outside of the known layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(8))


class Drops(Small):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Mixes, "mixes rows of a batch"),
        (Own, "can't stack the model (Own with gate)"),
        (Drops, "drop is 0.1"),
    ],
)
def test_what_does_not_stack_is_refused(model: Callable[[], nn.Module], words: str) -> None:
    models = [model(), model()]
    pointers = [p.data_ptr() for m in models for p in m.parameters()]
    with pytest.raises(ConfigError) as refused:
        stack(models, small_losses)
    assert words in str(refused.value) and "Fix: " in str(refused.value) and "\n" not in str(refused.value)
    assert [p.data_ptr() for m in models for p in m.parameters()] == pointers


def test_dropout_in_a_transformers_config_is_refused() -> None:
    model = llama(tied=True)
    model.config.attention_dropout = 0.1  # pyright: ignore
    with pytest.raises(ConfigError, match=r"attention_dropout is 0\.1"):
        stack([model, copy.deepcopy(model)], token_losses)


def test_islands_in_processes_of_their_own_are_refused(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = runs.write_recipe(tmp_path, corpus)
    place = ("--transport", "collective", "--run-dir", str(tmp_path / "run"))
    assert main(["train", f"{recipe}:local", "--batched", *place]) == 2
    assert "batched = True is not allowed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
