"""`lowcomm follow`: a directory that always holds a whole model, equal bit by bit to what the members have."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lowcomm.cli import main
from lowcomm.codec import Fp32
from lowcomm.config import CheckpointConfig, SyncConfig
from lowcomm.exchange.store import Store
from lowcomm.model import LoRA, ModelConfig
from lowcomm.outer import Nesterov
from lowcomm.storerun.served import WEIGHTS, version_in
from tests.support.members import Lives, make_run, store_config
from tests.support.runs import write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return write_corpus(tmp_path / "text")


def published() -> SyncConfig:
    exchange = Store(patience_s=2.0, publish_every=1, anchor_every=4)
    return SyncConfig(every=2, outer=Nesterov(lr=0.7, momentum=0.5), codec=Fp32(), exchange=exchange)


class Reader(threading.Thread):
    """Reads the directory again and again as it is replaced: every reading is one whole version."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self.directory, self.over = directory, threading.Event()
        self.seen: dict[str, int] = {}
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.wait(0.001):
                if not (self.directory / WEIGHTS).exists():
                    continue
                with safe_open(self.directory / WEIGHTS, framework="pt") as file:
                    version = file.metadata()["lowcomm.version"]
                    total = sum(hash(file.get_tensor(k).view(torch.int16).sum().item()) for k in file.keys())  # noqa: SIM118
                assert self.seen.setdefault(version, total) == total
        except BaseException as error:
            self.failure = error


def test_it_follows_to_the_end_and_a_reader_sees_whole_versions(tmp_path: Path, corpus: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = store_config(corpus, steps=16, sync=published(), checkpoint=CheckpointConfig(export=True))
    make_run(tmp_path / "store", config)
    both, served = Lives(tmp_path / "store", tmp_path), tmp_path / "served"
    codes: list[int] = []
    arguments = ["follow", str(tmp_path / "store"), str(served), "--allow", str(corpus)]
    follower = threading.Thread(target=lambda: codes.append(main(arguments)), daemon=True)
    reader = Reader(served)
    for thread in (follower, reader):
        thread.start()
    both.start("a")
    both.start("b")
    assert both.end() == {"a": 0, "b": 0}
    follower.join(60)
    reader.over.set()
    reader.join(60)
    assert codes == [0] and reader.failure is None and len(reader.seen) >= 1
    found = version_in(served)
    assert found is not None and found["last"] and found["tokens"] == 2 * 16 * 64
    exported, ours = load_file(tmp_path / "a" / "export" / WEIGHTS), load_file(served / WEIGHTS)
    assert exported.keys() == ours.keys()
    assert all(torch.equal(exported[name].to(torch.bfloat16), ours[name]) for name in exported)
    model = AutoModelForCausalLM.from_pretrained(served)
    assert model.dtype == torch.bfloat16 and AutoTokenizer.from_pretrained(served).eos_token is not None
    assert not list(served.glob(".new-*")) and served.stat().st_mode & 0o077 == 0


def test_adapters_are_merged(tmp_path: Path, corpus: Path) -> None:
    """And one look is enough for `--once`."""
    from lowcomm.aggregate.lora import FedIT

    sync = dataclasses.replace(published(), every=4, aggregator=FedIT(rank=4))
    model = ModelConfig(preset="nano", tuning=LoRA(rank=4))
    config = store_config(corpus, islands=1, model=model, sync=sync, checkpoint=CheckpointConfig(export=True))
    make_run(tmp_path / "store", config)
    one = Lives(tmp_path / "store", tmp_path)
    one.start("a")
    assert one.end() == {"a": 0}
    assert main(["follow", str(tmp_path / "store"), str(tmp_path / "served"), "--once"]) == 0
    exported, ours = (load_file(tmp_path / name / WEIGHTS) for name in ("a/export", "served"))
    assert exported.keys() == ours.keys()
    assert all(torch.allclose(exported[n], ours[n].float(), rtol=2**-7, atol=1e-4) for n in exported)


def test_what_is_refused(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "quiet", store_config(corpus))
    make_run(tmp_path / "store", store_config(corpus, sync=published()))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    for url, directory, flags, said in (
        ("quiet", "new", (), "publishes no versions"),
        ("store", "full", (), "holds other files (thesis.txt)"),
        ("store", "new", ("--every", "0"), "--every = 0"),
        ("store", "new", ("--sync.every", "3"), "sync.every"),
        ("nowhere", "new", (), "there is no such directory"),
    ):
        assert main(["follow", str(tmp_path / url), str(tmp_path / directory), *flags]) == 2
        line = capsys.readouterr().err
        assert said in line and line.count("\n") == 1 and "Fix: " in line
    assert main(["follow", str(tmp_path / "store"), str(tmp_path / "new"), "--once"]) == 1
    assert "no version can be read yet" in capsys.readouterr().err
