"""data.sharding own: sites that keep their data, each with a source that the others do not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lowcomm.data import DataConfig, TextFiles, TrainedBPE, build_data
from lowcomm.types import ConfigError
from tests.support.runs import run_islands, summary, write_corpus

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


def test_two_sites_train_one_model_without_each_others_text(tmp_path: Path) -> None:
    for site in ("0", "1"):
        (tmp_path / site).mkdir()
        write_corpus(tmp_path / site)
    for path in list((tmp_path / "1").glob("*.txt"))[:4]:  # another text, and less of it
        path.unlink()
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(base=str(tmp_path)), encoding="utf-8")
    log = tmp_path / "log"
    arguments = ["train", f"{recipe}:sites", "--islands", "2", "--run-dir", str(tmp_path / "run")]
    assert run_islands(arguments, 2, log) == [0, 0], log.read_text(encoding="utf-8")
    assert summary(tmp_path / "run")["status"] == "done"
    clients = json.loads((tmp_path / "run" / "clients.json").read_text())["clients"]
    assert len(set(clients["after"])) == 2, "each is evaluated on its own held-out text"
    assert summary(tmp_path / "run")["val_loss"] > 0
