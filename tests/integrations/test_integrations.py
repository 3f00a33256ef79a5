"""Other people's trainers with two real processes, each an island: the same weights, and exact resume."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lowcomm as lc
from lowcomm.integrations import example
from lowcomm.integrations.settings import Settings
from lowcomm.state.digest import sha256_weights
from lowcomm.types import ConfigError
from tests.support import runs, trainer_worker
from tests.support.trainer_worker import CODEC, EVERY, OUTER, STEPS, STOP

QUIET = {
    "DS_ACCELERATOR": "cpu",
    "TRANSFORMERS_VERBOSITY": "error",
    "OMP_NUM_THREADS": "1",
    "TORCHELASTIC_RUN_ID": "none",
}


HEAVY = ("lightning.pytorch", "trl.trainer.sft_trainer", "accelerate", "deepspeed", "tests.support.trainer_worker")


@pytest.fixture(scope="module")
def template() -> Iterator[runs.Template]:
    """Where all ranks are forked: the trainers take longer to import than to train."""
    made = runs.Template(HEAVY, QUIET)
    yield made
    made.close()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(runs.write_corpus(tmp_path_factory.mktemp("corpus")) / "*.txt")


Seen = dict[str, Any]


def run_job(job: str, out: Path, text: str, template: runs.Template, ranks: int = 2) -> list[Seen]:
    """What the ranks of a job saw."""
    log = out / "log"
    codes = template.run(trainer_worker.run, (job, str(out), text), runs.islands_environment(ranks), log)
    assert not any(codes), log.read_text(encoding="utf-8")[-4000:]
    return [json.loads((out / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


@pytest.fixture(scope="module")
def hf_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hf")


@pytest.fixture(scope="module")
def hf(hf_out: Path, text: str, template: runs.Template) -> list[Seen]:
    return run_job("hf", hf_out, text, template)


def test_hf_islands_train_alone_and_merge(hf: list[Seen], text: str) -> None:
    a, b = hf
    assert a["whole"] == b["whole"]
    for step in range(STEPS):
        merged = step % EVERY == 0
        assert (a["own"][str(step)] == b["own"][str(step)]) == merged, f"before step {step + 1}"
    assert [a["ddp_ranks"], b["ddp_ranks"]] == [[0], [1]]
    assert a["rounds"] == STEPS // EVERY
    numel = sum(p.numel() for p in example.nano(example.load_text(text)).parameters())
    assert a["bytes_sent"] < (STEPS // EVERY) * numel  # under a byte per weight and round: 4 bits, both ways


def test_hf_log_has_every_sync(hf: list[Seen]) -> None:
    lines = [line for line in hf[0]["log"] if "lowcomm/round" in line]
    assert [(line["lowcomm/round"], line["step"]) for line in lines] == [(k, 4 * k + 4) for k in range(STEPS // EVERY)]
    assert all(line["lowcomm/islands_left_out"] == 0 and line["lowcomm/sync_s"] > 0 for line in lines)
    losses = [line["loss"] for line in hf[0]["log"] if "loss" in line]
    assert len(losses) == STEPS // 5 and losses[-1] < losses[0]


def test_hf_resume_is_exact(hf: list[Seen]) -> None:
    """Stopped after ten steps, inside the third round, where the islands differ; then resumed."""
    for rank in hf:
        assert rank["parts"] == rank["whole"]
        assert rank["parts_own"] == {str(step): rank["own"][str(step)] for step in range(STOP, STEPS)}
        assert rank["parts_bytes_sent"] == rank["bytes_sent"]


def test_hf_checkpoints_and_evaluation_have_the_global_weights(hf: list[Seen], hf_out: Path) -> None:
    checkpoint = hf_out / "whole" / f"checkpoint-{STOP}"
    weights = load_file(checkpoint / "model.safetensors")
    for rank in range(2):
        part = checkpoint / "lowcomm" / f"{STOP:06d}" / f"island-{rank:05d}"
        merged = load_file(part / "global.safetensors")["weights.0"]
        names = json.loads((part / "global.json").read_text(encoding="utf-8"))["fragments"][0]
        assert torch.equal(torch.cat([weights[n].flatten() for n in names]), merged)
        own = load_file(part / "island.safetensors")
        assert not torch.equal(torch.cat([own[f"model.{n}"].flatten() for n in names]), merged)
    suffixes = {p.suffix for p in (checkpoint / "lowcomm").rglob("*") if p.is_file()}
    assert suffixes == {".safetensors", ".json"}
    evaluated = [line["eval_loss"] for line in hf[0]["log"] if "eval_loss" in line]
    assert len(evaluated) == 2 and evaluated == [line["eval_loss"] for line in hf[1]["log"] if "eval_loss" in line]


def test_hf_refuses(hf: list[Seen]) -> None:
    refused = hf[1]["refused"]
    assert "has no state of the islands" in refused["elsewhere"] and "resume_from=" in refused["elsewhere"]
    assert "Fix: use 'bf16'" in refused["fp16"]
    assert "make a new Trainer" in refused["twice"]
    assert "per_device_train_batch_size" in refused["batch size"]


@pytest.fixture(scope="module")
def apart_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apart")


@pytest.fixture(scope="module")
def apart(apart_out: Path, text: str, template: runs.Template) -> list[Seen]:
    return run_job("hf_apart", apart_out, text, template)


def test_hf_whoever_asks_saves_and_evaluates_the_global_weights(apart: list[Seen], apart_out: Path) -> None:
    """A callback that comes after ours in the list, in the middle of a round; what it saved can be resumed."""
    checkpoint = apart_out / "asks" / "checkpoint-6"
    part = checkpoint / "lowcomm" / "000006" / "island-00000"
    merged = load_file(part / "global.safetensors")["weights.0"]
    names = json.loads((part / "global.json").read_text(encoding="utf-8"))["fragments"][0]
    for saved in (checkpoint, apart_out / "copy-0"):
        weights = load_file(saved / "model.safetensors")
        assert torch.equal(torch.cat([weights[n].flatten() for n in names]), merged)
    assert apart[0]["evaluated"] == apart[1]["evaluated"]
    assert apart[0]["whole"] == apart[1]["whole"] == apart[0]["resumed"] == apart[1]["resumed"]


def test_hf_ranks_that_stop_apart_stop_after_the_same_round(apart: list[Seen]) -> None:
    """Rank 0 wants to stop after step 5: both do after step 8."""
    assert apart[0]["stopped"] == apart[1]["stopped"]
    assert apart[0]["stopped"][:2] == [8, 8]


def test_hf_sites_with_data_of_their_own_read_all_of_it(apart: list[Seen]) -> None:
    """Ten steps of two rows, of six and of ten."""
    for rank, rows in enumerate((6, 10)):
        read = apart[rank]["read"][:20]
        assert all(sorted(read[at : at + rows]) == list(range(rows)) for at in range(0, 20 - rows + 1, rows))
        assert "max_steps = [9, 15] of islands 0 to 1 is not allowed" in apart[rank]["unequal"]
        assert "island_size = 2 is not allowed: 1 with own_data" in apart[rank]["size"]
    assert apart[0]["own"] == apart[1]["own"]


def test_sft(hf: list[Seen]) -> None:
    a, b = hf[0]["sft"], hf[1]["sft"]
    assert a["weights"] == b["weights"]
    tokens = [line["num_tokens"] for line in a["log"] if "num_tokens" in line]
    assert tokens[-1] == 6 * 2 * example.SEQ_LEN  # of this island, not of all
    assert [line["lowcomm/round"] for line in a["log"] if "lowcomm/round" in line] == [0, 1]


def test_accelerate(tmp_path: Path, text: str, template: runs.Template) -> None:
    a, b = run_job("accelerate", tmp_path, text, template)
    assert a["whole"] == b["whole"] == a["rest"] == b["rest"]
    for rank in (a, b):
        assert rank["whole_own"] == rank["rest_own"]
        assert "call confine(accelerator) before" in rank["refused"]
        assert "island.size = 3" in rank["size"] and "[1, 2]" in rank["size"]
        assert "saved with every = 4, now it is 5" in rank["other"]
        assert "island 0 cannot go on from inner step 7" in rank["missing"]
        assert "island 1 cannot go on from inner step 6" in rank["torn"]  # said by both, so that none goes on alone


def test_islands_of_two_ranks(tmp_path: Path, text: str, template: runs.Template) -> None:
    """2 x 2 ranks are two islands with twice the batch, but for the order in which gradients are summed."""
    ranks = run_job("wide", tmp_path, text, template, ranks=4)
    assert all(rank["islands"] == 2 and rank["weights"] == ranks[0]["weights"] for rank in ranks)
    for step in range(6):
        a, b, c, d = (rank["own"][step] for rank in ranks)
        assert a == b and c == d and (a == c) == (step == EVERY - 1), f"after step {step + 1}"
    data = example.load_text(text)
    rows = example.rows(data, 64)
    models = [example.nano(data) for _ in range(2)]
    inners = [torch.optim.AdamW(m.parameters(), lr=1e-3) for m in models]
    sync = lc.LocalSGD(models, inners, every=EVERY, outer=OUTER)
    for step in range(6):
        for island, (model, inner) in enumerate(zip(models, inners, strict=True)):
            pair = rows[4 * step + 2 * island : 4 * step + 2 * island + 2]
            model(**{key: torch.stack([row[key] for row in pair]) for key in pair[0]}).loss.backward()
            inner.step()
            inner.zero_grad()
    sync.finish()
    expected = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    torch.testing.assert_close(torch.tensor(ranks[0]["values"]), expected, rtol=1e-3, atol=1e-4)


def test_lightning(tmp_path: Path, text: str, template: runs.Template) -> None:
    """14 steps per epoch, so that an epoch ends inside a round."""
    a, b = run_job("lightning", tmp_path, text, template)
    assert a["whole"] == b["whole"] == a["parts"] == b["parts"]
    assert [a["ddp_ranks"], b["ddp_ranks"]] == [[0], [1]]
    assert a["own"]["4"] == b["own"]["4"] and a["own"]["14"] != b["own"]["14"]
    assert a["checkpoint"] == a["validated"][0] == b["validated"][0]
    assert a["rounds"] == 28 // EVERY
    for rank in (a, b):
        assert "EveryStep" in rank["refused"]["schedule"]
        assert "bf16-mixed" in rank["refused"]["precision"]
        assert "Fix: strategy='ddp'" in rank["refused"]["strategy"]


def test_deepspeed_is_the_plain_loop(tmp_path: Path, text: str, template: runs.Template) -> None:
    a, b = run_job("deepspeed", tmp_path, text, template)
    data = example.load_text(text)
    rows = example.rows(data, 64)
    models = [example.nano(data) for _ in range(2)]
    inners = [torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.01) for m in models]
    sync = lc.LocalSGD(models, inners, every=EVERY, outer=OUTER, codec=CODEC)
    for step in range(10):
        for island, (model, inner) in enumerate(zip(models, inners, strict=True)):
            model(**{key: value[None] for key, value in rows[2 * step + island].items()}).loss.backward()
            inner.step()
            inner.zero_grad()
    assert [a["own"], b["own"]] == [trainer_worker.digest(m) for m in models]
    sync.finish()
    expected = sha256_weights({n: p.detach() for n, p in models[0].named_parameters()})
    assert a["weights"] == b["weights"] == expected
    assert a["bytes_sent"] == sync.transport.sent_bytes[0]
    for rank in (a, b):
        assert "averages gradients over ranks [0, 1] of 2" in rank["refused"]["world"]
        assert rank["zero"] == expected and rank["zero_rounds"] == 3


def assert_islands_of_two(ranks: list[Seen], steps: int) -> None:
    """`own`: digest of a rank's weights before each step. Ranks of an island agree always, islands after a merge."""
    assert len({rank["whole"] for rank in ranks}) == 1
    assert [rank["ddp_ranks"] for rank in ranks] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    for step in range(steps):
        a, b, c, d = (rank["own"][str(step)] for rank in ranks)
        assert a == b and c == d and (a == c) == (step % EVERY == 0), f"before step {step + 1}"
    assert all(rank["parts"] == rank["whole"] for rank in ranks)


@pytest.mark.slow
def test_hf_islands_of_two_ranks(tmp_path: Path, text: str, template: runs.Template) -> None:
    """DDP inside; stopped inside a round and resumed; TRL's metrics are those of both ranks of an island."""
    ranks = run_job("hf", tmp_path, text, template, ranks=4)
    assert_islands_of_two(ranks, STEPS)
    for rank in ranks:
        assert rank["parts_own"] == {str(step): rank["own"][str(step)] for step in range(STOP, STEPS)}
        assert rank["parts_bytes_sent"] == rank["bytes_sent"] and rank["rounds"] == STEPS // EVERY
        assert rank["sft"]["weights"] == ranks[0]["sft"]["weights"]
    tokens = [line["num_tokens"] for line in ranks[0]["sft"]["log"] if "num_tokens" in line]
    assert tokens[-1] == 6 * 2 * 2 * example.SEQ_LEN
    numel = sum(p.numel() for p in example.nano(example.load_text(text)).parameters())
    assert max(rank["bytes_sent"] for rank in ranks) < 0.6 * (STEPS // EVERY) * numel  # a rank sends half its island's


@pytest.mark.slow
def test_lightning_islands_of_two_ranks(tmp_path: Path, text: str, template: runs.Template) -> None:
    """Seven steps per epoch, so that the first one ends inside a round; the second one again from its checkpoint."""
    ranks = run_job("lightning", tmp_path, text, template, ranks=4)
    assert_islands_of_two(ranks, 14)
    assert ranks[0]["checkpoint"] == ranks[0]["validated"][0] == ranks[3]["validated"][0]
    assert ranks[0]["rounds"] == 4


@pytest.mark.slow
def test_deepspeed_islands_of_two_ranks(tmp_path: Path, text: str, template: runs.Template) -> None:
    """ZeRO 2 and 3 train what a plain loop does with the island's two rows as a batch, but for the order of sums."""
    ranks = run_job("deepspeed_wide", tmp_path, text, template, ranks=4)
    data = example.load_text(text)
    rows = example.rows(data, 64)
    models = [example.nano(data) for _ in range(2)]
    inners = [torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.01) for m in models]
    sync = lc.LocalSGD(models, inners, every=EVERY, outer=OUTER)
    for step in range(10):
        for island, (model, inner) in enumerate(zip(models, inners, strict=True)):
            pair = rows[4 * step + 2 * island : 4 * step + 2 * island + 2]
            model(**{key: torch.stack([row[key] for row in pair]) for key in pair[0]}).loss.backward()
            inner.step()
            inner.zero_grad()
    sync.finish()
    for stage in ("zero2", "zero3"):
        for rank in ranks:
            assert rank[f"{stage}_again"] == rank[stage] and rank[f"{stage}_rounds"] == 3
        assert ranks[0][stage] == ranks[2][stage] and ranks[1][stage] == ranks[3][stage]
        for name, p in models[0].named_parameters():
            found = torch.tensor([v for rank in ranks[:2] for v in rank[stage].get(name, [])])
            torch.testing.assert_close(found, p.detach().flatten(), rtol=1e-3, atol=1e-4, msg=f"{stage} {name}")
    assert all("island.size = 3" in rank["refused"] and "[1, 2, 4]" in rank["refused"] for rank in ranks)


@pytest.mark.parametrize(
    "name", ["plain", "accelerate_loop", "hf_trainer", "sft", "lightning_module", "deepspeed_engine"]
)
def test_scripts(tmp_path: Path, text: str, template: runs.Template, name: str) -> None:
    log = tmp_path / "log"
    arguments = ["--steps", "6", "--every", "4", "--text", text, "--output", str(tmp_path)]
    codes = template.run(trainer_worker.script, (name, arguments), runs.islands_environment(2), log)
    assert codes == [0, 0], log.read_text(encoding="utf-8")[-4000:]
    told = log.read_text(encoding="utf-8")  # two processes write to it: their lines may share one
    lines = [json.JSONDecoder().raw_decode(told, m.start())[0] for m in re.finditer(r'\{"island"', told)]
    assert sorted(line["island"] for line in lines) == [0, 1]
    assert all((line["islands"], line["steps"], line["rounds"]) == (2, 6, 2) for line in lines)
    assert len({line["weights_sha256"] for line in lines}) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"every": 0}, "every = 0"),
        ({"every": 4, "outer": lc.outer.Nesterov(lr=-1.0)}, "lr"),
        ({"every": 4, "codec": lc.codec.TopK(k=0)}, "k = 0"),
    ],
)
def test_settings_are_checked_before_anything_starts(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Settings.of(**fields)


def test_a_misspelt_argument_is_refused() -> None:
    from lowcomm.integrations.hf import LowCommCallback

    with pytest.raises(TypeError, match="evry"):
        LowCommCallback(evry=4)  # pyright: ignore[reportCallIssue]


def test_importing_lowcomm_and_its_integrations_is_light() -> None:
    code = (
        "import sys, lowcomm, lowcomm.deepspeed, lowcomm.integrations\n"
        "print([m for m in ('transformers', 'accelerate', 'trl', 'lightning', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
