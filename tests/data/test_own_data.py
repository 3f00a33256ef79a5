"""data.sharding own: sites that keep their data, each with a source that the others do not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowcomm.data import DataConfig, TextFiles, TrainedBPE, build_data
from lowcomm.data.windows import WindowShard
from lowcomm.privacy import epsilon
from lowcomm.run.privacy_spent import participations
from lowcomm.run.run_dir import is_locked, lock
from lowcomm.types import ConfigError
from tests.support.runs import ROOT, free_port, summary, write_corpus

RECIPE = """
import dataclasses, os
from pathlib import Path
from lowcomm.config import EvalConfig
from lowcomm.data import TextFiles
from tests.support.runs import small

def sites():
    base = small(Path("."), None, islands=None, transport="collective", steps=8)
    site = Path({base!r}) / os.environ.get("RANK", "0")
    data = dataclasses.replace(base.data, source=TextFiles(glob=f"{{site}}/*.txt"), sharding="own")
    return dataclasses.replace(base, data=data, eval=EvalConfig(clients=True))
"""


def data_of(directory: Path, islands: int = 2) -> DataConfig:
    write_corpus(directory)
    return DataConfig(source=TextFiles(glob=str(directory / "*.txt")), seq_len=32, batch_size=2, sharding="own")


def test_an_island_reads_all_of_its_text_in_an_order_of_its_own(tmp_path: Path) -> None:
    config = data_of(tmp_path)
    shards = [build_data(config, 2, 0).shard(k) for k in range(2)]
    iid = build_data(DataConfig(source=config.source, seq_len=32, batch_size=2), 2, 0).shard(0)
    assert shards[0].windows_per_epoch == shards[1].windows_per_epoch >= 2 * iid.windows_per_epoch
    first, second = (shard.next_batch()[0] for shard in shards)
    assert not first.equal(second)


def test_a_tokenizer_that_each_site_would_train_is_refused(tmp_path: Path) -> None:
    import dataclasses

    with pytest.raises(ConfigError, match="trained on each site's own text differs"):
        build_data(dataclasses.replace(data_of(tmp_path), tokenizer=TrainedBPE()), 2, 0)


def start_site(site: int, directory: Path, port: int, flags: list[str]) -> subprocess.Popen[str]:
    """A site's process on a machine of its own, as far as its environment goes."""
    place = {"RANK": str(site), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "lowcomm.cli", "train", f"{directory.parent / 'recipe.py'}:sites", *flags],
        cwd=directory,
        env={**os.environ, **place, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def sequences_of(site: Path) -> int:
    """Training sequences of a site, as only it knows them."""
    source = TextFiles(glob=str(site / "*.txt"))
    config = DataConfig(source=source, seq_len=32, batch_size=2, validation_sequences=8, sharding="own")
    shard = build_data(config, 2, 0).shard(0)
    assert isinstance(shard, WindowShard)
    return shard.windows_per_epoch


@pytest.mark.slow
def test_two_sites_train_one_model_without_each_others_text(tmp_path: Path) -> None:
    """Each site's people find all that their run left, and read what it was worth to them, and what it gave away."""
    for site in ("0", "1"):
        (tmp_path / site).mkdir()
        write_corpus(tmp_path / site)
    for path in list((tmp_path / "1").glob("*.txt"))[:4]:  # another text, and less of it
        path.unlink()
    (tmp_path / "recipe.py").write_text(RECIPE.format(base=str(tmp_path)), encoding="utf-8")
    flags = ["--run-dir", "run", "--checkpoint.export", "--eval.baselines"]
    flags += ["--sync.privacy", "ExampleGaussian(clip=0.5, noise_multiplier=4.0)"]
    port = free_port()
    sites = [start_site(k, tmp_path / str(k), port, flags) for k in range(2)]
    said = [site.communicate(timeout=120)[0] for site in sites]
    assert [site.returncode for site in sites] == [0, 0], said
    runs = [tmp_path / str(k) / "run" for k in range(2)]
    for run in runs:
        assert summary(run)["status"] == "done" and summary(run)["val_loss"] > 0
        found = json.loads((run / "clients.json").read_text())
        assert found["names"] == ["site 0", "site 1"]
        assert len(set(found["clients"]["after"])) == 2, "each is evaluated on its own held-out text"
        assert set(found["clients"]) == {"before", "after", "own", "local"}, "no text leaves its site: none is pooled"
        assert (run / "export" / "model.safetensors").is_file()
        assert (run / "report.html").is_file()
    assert len({summary(run)["weights_sha256"] for run in runs}) == 1
    spent = [summary(run)["privacy"]["epsilon_total"] for run in runs]
    windows = [sequences_of(tmp_path / str(k)) for k in range(2)]
    assert windows[1] < windows[0]
    assert spent == [epsilon(participations(windows[1], 2, 8, 4.0), 1e-5)] * 2, "that of the site protected least"
    for words in said:
        assert "held-out loss in nats per token" in words and "\nsite 1 " in words
        assert "report: run/report.html" in words


def test_a_directory_that_rank_0_shares_is_left_to_it(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    with lock(tmp_path, 0, False):
        assert is_locked(tmp_path)
    with lock(tmp_path, 1, False):
        assert not is_locked(tmp_path)
