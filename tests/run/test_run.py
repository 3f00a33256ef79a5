"""A run from end to end: what it leaves behind, what it reports, and how it fails."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import resource
import subprocess
from pathlib import Path

import pytest
import torch

import lowcomm.trainer
from lowcomm import checkpoint
from lowcomm.cli import main
from lowcomm.codec import ErrorFeedback, Rqm
from lowcomm.config import CheckpointConfig, EvalConfig, SyncConfig
from lowcomm.config_file import to_dict
from lowcomm.data import build_data
from lowcomm.island import InnerConfig, IslandConfig, PlainIsland
from lowcomm.privacy import RqmAccountant
from lowcomm.report.metrics import KEYS
from lowcomm.trainer import DivergedError, train
from lowcomm.types import CheckpointError, SyncError
from tests.support import runs

SUMMARY_KEYS = {
    *("status", "name", "parameters", "parameters_trainable", "val_loss", "val_bpb", "tokens", "steps", "rounds"),
    *("islands", "bytes_sent", "bytes_received", "wall_s", "blocked_s", "sync_s", "utilisation", "weights_sha256"),
    *("deadline_misses", "deadline_waited_s", "peak_bytes_per_s", "link_bytes_per_s", "lost"),
    *("privacy", "attack", "step_hashes"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A finished run with everything switched on."""
    directory = tmp_path_factory.mktemp("runs") / "deep" / "run"
    saves = CheckpointConfig(every_rounds=1)
    config = runs.small(corpus, directory, checkpoint=saves, eval=EvalConfig(every=4), tensorboard=True, log_every=3)
    assert train(config) == 0
    return directory


def test_files_of_a_run(finished: Path, corpus: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert names == {
        *("config.json", "environment.json", "metrics.jsonl", "summary.json", "checkpoints", "export"),
        *("tensorboard", ".lock"),
    }
    stored = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    assert stored["sync"]["every"] == 4 and stored["islands"] == 2
    assert stored["sync"]["outer"]["type"] == "lowcomm.outer.nesterov.Nesterov"
    environment = json.loads((finished / "environment.json").read_text(encoding="utf-8"))
    assert {"versions", "commit", "hardware", "interfaces", "command"} <= set(environment)
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["hardware"]["cores"] >= 1
    assert any((finished / "tensorboard").rglob("events.out.tfevents.*"))
    assert checkpoint.names(finished / "checkpoints") == ["000002", "000003"]


def test_summary(finished: Path) -> None:
    summary = runs.summary(finished)
    assert set(summary) == SUMMARY_KEYS
    assert (summary["status"], summary["islands"], summary["steps"], summary["rounds"]) == ("done", 2, 12, 3)
    assert summary["tokens"] == 2 * 12 * 2 * 32
    assert 100_000 < summary["parameters"] == summary["parameters_trainable"] < 140_000
    assert 0 < summary["val_loss"] < math.log(260)
    assert summary["val_bpb"] == pytest.approx(summary["val_loss"] / math.log(2), rel=0.02)  # bytes: about 1 per token
    assert 0 < summary["utilisation"] < 1 and 0 < summary["blocked_s"] < summary["wall_s"]
    # two islands exchange half a model each way, twice per round: as a ring all-reduce does; the rest is small
    model_bytes = 4 * summary["parameters"]
    assert 3 * model_bytes <= summary["bytes_sent"] < 3.05 * model_bytes
    assert summary["bytes_received"] == summary["bytes_sent"]
    assert len(summary["weights_sha256"]) == 64


def test_metrics_have_all_keys_on_every_line(finished: Path) -> None:
    lines = runs.metrics(finished)
    assert all(tuple(line) == KEYS for line in lines)
    contract = ("island", "round", "step", "tokens", "loss", "val_loss", "bytes_sent", "bytes_received")
    assert {*contract, "step_s", "sync_s", "blocked_s"} <= set(KEYS)
    by_event = {event: [m for m in lines if m["event"] == event] for event in ("step", "sync", "eval")}
    steps = [(m["island"], m["step"]) for m in by_event["step"]]
    assert steps == [(island, step) for step in (3, 6, 9, 12) for island in (0, 1)]
    assert [(m["island"], m["round"], m["step"]) for m in by_event["sync"]] == [
        (island, number, 4 * number) for number in (1, 2, 3) for island in (0, 1)
    ]
    assert [m["step"] for m in by_event["eval"]] == [4, 8, 12]
    assert by_event["eval"][-1]["val_loss"] == runs.summary(finished)["val_loss"]
    assert by_event["step"][-1]["tokens"] == 12 * 2 * 32
    assert [m["bytes_sent"] for m in lines] == sorted(m["bytes_sent"] for m in lines)
    assert all(m["loss"] > 0 and m["step_s"] > 0 and m["lr"] > 0 and m["grad_norm"] > 0 for m in by_event["step"])


def test_export_is_what_was_measured(finished: Path, corpus: Path) -> None:
    """The exported model, loaded by transformers alone, has the reported validation loss and weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "export")
    tokenizer = AutoTokenizer.from_pretrained(finished / "export")
    text = "def f(x):\n    return 'é' + \"\x7f\"\n"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.eos_token_id == model.config.eos_token_id == 256
    config = runs.small(corpus, finished)
    nats = tokens = 0.0
    with torch.no_grad():
        for inputs, targets in build_data(config.data, 2, 0).validation_batches():
            logits = model(input_ids=inputs).logits.double()
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            tokens += targets.numel()
    assert nats / tokens == pytest.approx(runs.summary(finished)["val_loss"], rel=1e-6)
    from safetensors.torch import load_file

    saved = load_file(finished / "checkpoints/000003/island-00000/global.safetensors")["weights.0"]
    exported = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(exported, saved)


def test_same_seed_same_bits_other_seed_other_bits(tmp_path: Path, corpus: Path, finished: Path) -> None:
    for seed, equal in ((0, True), (1, False)):
        assert train(runs.small(corpus, tmp_path / str(seed), seed=seed)) == 0
        same = runs.summary(tmp_path / str(seed))["weights_sha256"] == runs.summary(finished)["weights_sha256"]
        assert same is equal


def test_accumulation_equals_a_larger_batch(tmp_path: Path, corpus: Path) -> None:
    """Two micro-batches of 2 are one batch of 4, but for the order of a sum."""
    large = runs.small(corpus, tmp_path / "large", log_every=1)
    large = dataclasses.replace(large, data=dataclasses.replace(large.data, batch_size=4))
    small = runs.small(corpus, tmp_path / "small", log_every=1, inner=InnerConfig(accumulation=2))
    assert train(large) == 0
    assert train(small) == 0
    a, b = runs.summary(tmp_path / "large"), runs.summary(tmp_path / "small")
    assert a["tokens"] == b["tokens"] == 2 * 12 * 4 * 32
    assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-4)
    first, second = (
        [m[key] for m in runs.metrics(tmp_path / name) if m["step"] == 1 for key in ("loss", "grad_norm")]
        for name in ("large", "small")
    )
    assert first == pytest.approx(second, rel=1e-4)  # AdamW alone would hide a wrong scale of the gradient
    assert train(runs.small(corpus, tmp_path / "without")) == 0
    assert runs.summary(tmp_path / "without")["val_loss"] != pytest.approx(b["val_loss"], rel=1e-3)


def test_clipping_is_recorded(tmp_path: Path, corpus: Path) -> None:
    """The norm before clipping is logged, so that a clip which bites in every step is seen."""
    for name, clip in (("tight", 0.01), ("loose", 1e6), ("off", None)):
        assert train(runs.small(corpus, tmp_path / name, log_every=1, inner=InnerConfig(clip_norm=clip))) == 0
    tight, loose, off = (
        [m["grad_norm"] for m in runs.metrics(tmp_path / name) if m["event"] == "step"]
        for name in ("tight", "loose", "off")
    )
    assert tight[:2] == loose[:2] and min(tight) > 0.01
    assert set(off) == {None}
    sha256 = [runs.summary(tmp_path / name)["weights_sha256"] for name in ("tight", "loose", "off")]
    assert sha256[0] != sha256[1] == sha256[2]


def assert_good_until(config_dir: Path, name: str) -> None:
    """The newest whole checkpoint is `name`, and holds finite numbers."""
    root = config_dir / "checkpoints"
    assert list(checkpoint.verified(root, 0))[-1] == list(checkpoint.verified(root, 1))[-1] == name
    for island in range(2):
        for tensors, _ in checkpoint.load(root, name, island).values():
            assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def test_nan_loss(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward = PlainIsland.backward
    monkeypatch.setattr(
        PlainIsland,
        "backward",
        lambda self, b: math.nan if self.inner.param_groups[0]["lr"] == at else backward(self, b),
    )
    at = -1.0
    assert train(runs.small(corpus, tmp_path / "rates", log_every=1)) == 0
    at = next(m["lr"] for m in runs.metrics(tmp_path / "rates") if m["event"] == "step" and m["step"] == 9)
    config = runs.small(corpus, tmp_path / "run")
    with pytest.raises(DivergedError, match=r"the loss of island 1 is nan at inner step 10: the run stops\. Fix: "):
        train(config)
    assert runs.summary(tmp_path / "run")["status"] == "failed"
    assert_good_until(tmp_path / "run", "000002")
    at = -1.0
    assert train(dataclasses.replace(config, resume=True)) == 0
    assert runs.summary(tmp_path / "run")["weights_sha256"] == runs.summary(tmp_path / "rates")["weights_sha256"]


def test_nan_weights_without_quorum(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that break in the last step of a round: the sync refuses them, and they are never saved."""
    update = PlainIsland.update

    def poisoned(self: PlainIsland, step: int) -> None:
        if step == 11:
            with torch.no_grad():
                self.params[0].fill_(math.nan)
        update(self, step)

    monkeypatch.setattr(PlainIsland, "update", poisoned)
    saves = CheckpointConfig(every_rounds=1, keep=1, export=False)
    with pytest.raises(SyncError, match=r"round 2 has no quorum: 0 of 2 islands are usable .*Nothing was committed"):
        train(runs.small(corpus, tmp_path / "run", checkpoint=saves))
    assert runs.summary(tmp_path / "run")["status"] == "failed"
    assert_good_until(tmp_path / "run", "000002")


def test_learning_rate_far_too_high(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = runs.write_recipe(tmp_path, corpus)
    arguments = ["--inner.optimizer.lr", "1e30", "--inner.clip-norm", "None", "--run-dir", str(tmp_path / "run")]
    assert main(["simulate", f"{recipe}:local", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("lowcomm: error: the loss of island 1 is ")
    assert "a lower learning rate of the inner optimizer" in error
    assert runs.summary(tmp_path / "run")["status"] == "failed"


def test_save_failure_does_not_stop_training(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round 2 can't be saved: the run says so, goes on, saves round 3, and ends with an error."""
    save_now = lowcomm.trainer.save_now

    def sometimes(run: lowcomm.trainer.Run, name: str, time_s: float, failure: str | None) -> None:
        root = run.directory / "checkpoints"
        if name == "000002":
            root.rename(tmp_path / "aside")
            root.write_text("", encoding="utf-8")
        try:
            save_now(run, name, time_s, failure)
        finally:
            if name == "000002":
                root.unlink()
                (tmp_path / "aside").rename(root)

    monkeypatch.setattr(lowcomm.trainer, "save_now", sometimes)
    with pytest.raises(CheckpointError, match="the run is done, but a save failed on the way: checkpoint 000002"):
        train(runs.small(corpus, tmp_path / "run"))
    assert "warning: checkpoint 000002 of island 0 could not be written" in capsys.readouterr().out
    assert any("warning: checkpoint 000002" in (m["note"] or "") for m in runs.metrics(tmp_path / "run"))
    assert checkpoint.names(tmp_path / "run/checkpoints") == ["000001", "000003"]
    summary = runs.summary(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("done", 12) and summary["val_loss"] is not None


def simulate_with_little_room(arguments: list[str], limit_bytes: int) -> int:
    """A disk that takes files up to a size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    return main(arguments)


@pytest.mark.parametrize("limit_bytes", [200_000, 4_000])
def test_disk_full(tmp_path: Path, corpus: Path, limit_bytes: int) -> None:
    """No room for checkpoints and export, or not even for metrics: training goes on to the end, exit code 1."""
    recipe, log = runs.write_recipe(tmp_path, corpus), tmp_path / "log"
    arguments = ["simulate", f"{recipe}:local", "--run-dir", str(tmp_path / "run"), "--checkpoint.export"]
    child = runs.start(simulate_with_little_room, ([*arguments, "--log-every", "1"], limit_bytes), log)
    assert runs.wait(child, log) == 1, log.read_text()
    said = log.read_text()
    assert "could not be written" in said and "too large" in said
    assert "Traceback" not in said
    summary = runs.summary(tmp_path / "run")
    assert (summary["status"], summary["steps"]) == ("done", 12)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("options", ["size=900k", "size=8m"])
def test_full_and_read_only_file_system(tmp_path: Path, corpus: Path, options: str) -> None:
    """A real small file system under the checkpoints: full after some rounds, or read-only after the first half."""
    config = runs.small(corpus, tmp_path / "run")
    half = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, stop_at_step=5))
    root = tmp_path / "run/checkpoints"
    root.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        assert train(half) == 3
        before = list(checkpoint.verified(root, 1))
        used_bytes = sum(p.stat().st_size for p in root.rglob("*"))
        remount = "remount,ro" if options == "size=8m" else f"remount,size={used_bytes // 1024 + 600}k"
        subprocess.run(["mount", "-o", remount, str(root)], check=True)
        cause = "Read-only file system" if options == "size=8m" else "No space left on device"
        with pytest.raises(
            CheckpointError, match=f"a save failed on the way: .*{cause}.* Earlier checkpoints are intact"
        ):
            train(dataclasses.replace(config, resume=True))
        assert list(checkpoint.verified(root, 1)) == before == list(checkpoint.verified(root, 0))
        assert runs.summary(tmp_path / "run")["status"] == "done"
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_stop_that_cannot_be_saved_is_not_a_stop(tmp_path: Path, corpus: Path) -> None:
    """Exit code 3 promises that everything was saved."""
    saves = CheckpointConfig(stop_at_step=5, export=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"stopped \(stop_at_step\), but not saved: "):
        train(runs.small(corpus, tmp_path / "run", checkpoint=saves))
    assert runs.summary(tmp_path / "run")["status"] == "failed"


def test_config_is_stored_whole(finished: Path, corpus: Path) -> None:
    stored = json.loads((finished / "config.json").read_text(encoding="utf-8"))
    config = runs.small(
        corpus,
        finished,
        checkpoint=CheckpointConfig(every_rounds=1),
        eval=EvalConfig(every=4),
        island=IslandConfig(size=1),
        tensorboard=True,
        log_every=3,
    )
    assert stored == to_dict(config)
    with pytest.raises(Exception, match="can't be stored"):
        to_dict({"x": object()})


def test_a_private_codec_reports_what_it_gives_away(tmp_path: Path, corpus: Path) -> None:
    """Epsilon of each round and of all so far in the log, the whole in the summary; other codecs promise nothing."""
    codec = ErrorFeedback(codec=Rqm(clip=0.01, margin=4.0, keep=0.2))
    assert train(runs.small(corpus, tmp_path / "rqm", sync=SyncConfig(every=4, codec=codec))) == 0
    summary = runs.summary(tmp_path / "rqm")
    accountant = RqmAccountant(clip=0.01, margin=4.0, levels=16, keep=0.2, elements=summary["parameters"])
    assert summary["privacy"] == accountant.report(3, 1e-5)
    notes = [m["note"] for m in runs.metrics(tmp_path / "rqm") if m["note"]]
    totals = [accountant.epsilon(k, 1e-5) for k in (1, 2, 3)]
    assert [float(re.search(r"round, ([\d.e+]+) in all", n)[1]) for n in notes] == pytest.approx(totals, rel=1e-3)  # type: ignore[index]


def test_other_codecs_promise_no_privacy(finished: Path) -> None:
    assert runs.summary(finished)["privacy"] is None
