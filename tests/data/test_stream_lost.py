"""A stream that breaks in the middle of a run: saved on every island, file and row named, and a way on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from lowcomm import checkpoint
from lowcomm.config import CheckpointConfig, RunConfig, SyncConfig
from lowcomm.data import DataConfig, HFDataset, build_data
from lowcomm.model import ModelConfig
from lowcomm.trainer import train
from lowcomm.types import ConfigError, DataError
from tests.support import runs

GOOD, BAD = "a row of some words", None


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def write(path: Path, bad: int | None, text: str | None = BAD, rows: int = 120) -> Path:
    """Rows of a text each, but for row `bad`, from 1 on."""
    lines = [{"text": text if i == bad else f"{i}: {GOOD}"} for i in range(1, rows + 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def config_of(path: Path, run_dir: Path | None, islands: int = 2, **changes: Any) -> RunConfig:
    source = HFDataset(name="json", data_files=str(path.parent / "*.jsonl"))
    data = DataConfig(
        source=source,
        seq_len=16,
        batch_size=2,
        validation_fraction=0.3,
        validation_sequences=4,
        cache_dir=path.parent / "cache",
    )
    base = RunConfig(
        islands=islands,
        steps=16,
        threads=1,
        transport="simulated",
        device="cpu",
        run_dir=run_dir,
        tensorboard=False,
        data=data,
        model=ModelConfig(preset="nano"),
        sync=SyncConfig(every=4),
        checkpoint=CheckpointConfig(every_rounds=None, export=False),
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize("bad", [49, 50, 53])
def test_a_bad_row_ends_the_run_saved_and_the_mended_file_goes_on_with_the_same_bits(tmp_path: Path, bad: int) -> None:
    """Rows 49 and 50 are those of different islands; the last save would be long ago without this one."""
    rows = tmp_path / "rows"
    rows.mkdir()
    path = write(rows / "a.jsonl", bad)
    config = config_of(path, tmp_path / "run")
    with pytest.raises(DataError, match=rf"a\.jsonl row {bad} is not a string") as info:
        train(config)
    assert "--data.source.skip-bad-rows" in str(info.value) and "\n" not in str(info.value)
    summary = runs.summary(tmp_path / "run")
    assert summary["status"] == "failed" and 0 < summary["steps"] < 16
    (name,) = checkpoint.names(tmp_path / "run" / "checkpoints")
    assert len(list((tmp_path / "run" / "checkpoints" / name).glob("island-*"))) == 2
    with pytest.raises(DataError):  # what is still broken ends it again, and takes nothing away
        train(dataclasses.replace(config, resume=True))
    write(path, bad, f"{bad}: {GOOD}")
    assert train(dataclasses.replace(config, resume=True)) == 0
    assert train(dataclasses.replace(config, run_dir=tmp_path / "whole")) == 0
    ended, whole = (runs.summary(tmp_path / name) for name in ("run", "whole"))
    for key in ("weights_sha256", "val_loss", "tokens", "steps"):
        assert ended[key] == whole[key], key


def test_bad_rows_are_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    path = write(rows / "a.jsonl", 50)
    config = config_of(path, tmp_path / "run")
    with pytest.raises(DataError):
        train(config)
    source = dataclasses.replace(config.data.source, skip_bad_rows=True)  # pyright: ignore[reportCallIssue]
    skipping = dataclasses.replace(config, resume=True, data=dataclasses.replace(config.data, source=source))
    assert train(skipping) == 0
    assert "1 rows of island 1 were left out" in " ".join(capsys.readouterr().out.split())
    assert any("were left out" in (line.get("note") or "") for line in runs.metrics(tmp_path / "run"))
    loaded = dataclasses.replace(skipping.data, source=dataclasses.replace(source, streaming=False))
    assert build_data(loaded, 1, 0).stats["rows_skipped"] == 1


@pytest.mark.parametrize(("islands", "files"), [(1, 2), (2, 2), (3, 2)])
def test_the_file_and_its_row_are_named(tmp_path: Path, islands: int, files: int) -> None:
    """Whether islands read whole files, or every n-th row of all."""
    for number in range(files):
        write(tmp_path / f"{number}.jsonl", 40 if number == 1 else None)
    data = build_data(config_of(tmp_path / "x", None).data, islands, 0)
    failed = 0
    for island in range(islands):
        shard = data.shard(island)
        try:
            for _ in range(100):
                before = shard.state_dict()
                shard.next_batch()
        except DataError as error:
            assert f"{tmp_path / '1.jsonl'} row 40 is not" in str(error)
            assert shard.state_dict() == before, "nothing was read"
            failed += 1
    assert failed == 1


def test_what_is_broken_at_the_start_is_bad_input(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", 1)
    with pytest.raises(ConfigError, match=r"a\.jsonl row 1 is not a string"):
        build_data(config_of(tmp_path / "x", None).data, 1, 0)


def test_a_lost_connection_is_no_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", None)
    shard = build_data(config_of(tmp_path / "x", None).data, 1, 0).shard(0)
    state = shard.state_dict()

    class Lost:
        def __next__(self) -> Any:
            raise ConnectionError("no route\nto host")

    reader = shard._reader  # pyright: ignore[reportAttributeAccessIssue]
    reader._iterator = Lost()
    with pytest.raises(DataError, match=r"a\.jsonl row \d+ failed .ConnectionError: no route to host"):
        for _ in range(10):
            shard.next_batch()
    assert shard.state_dict() == state
    again = build_data(config_of(tmp_path / "x", None).data, 1, 0).shard(0)
    for _ in range(10):  # it is opened again with the next row
        assert all(a.equal(b) for a, b in zip(shard.next_batch(), again.next_batch(), strict=True))


RECIPE = """
from pathlib import Path
from tests.data.test_stream_lost import config_of

def streamed():
    return config_of(Path({path!r}), None, islands=None, transport="collective")
"""


def test_every_process_saves_when_one_cannot_read(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    path = write(rows / "a.jsonl", 51)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(path=str(path)), encoding="utf-8")

    arguments = ["train", f"{recipe}:streamed", "--islands", "2", "--run-dir", str(tmp_path / "run")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "hf")}

    def run(*more: str) -> tuple[list[int], str]:
        """Exit codes of the islands, and what they printed."""
        log = tmp_path / f"log{len(more)}"
        codes = runs.run_islands([*arguments, *more], 2, log, offline)
        return codes, log.read_text(encoding="utf-8")

    codes, printed = run()
    assert codes == [1, 1], printed
    assert "a.jsonl row 51 is not a string" in printed
    (name,) = checkpoint.names(tmp_path / "run" / "checkpoints")
    assert len(list((tmp_path / "run" / "checkpoints" / name).glob("island-*"))) == 2
    write(path, None)
    codes, printed = run("--resume")
    assert codes == [0, 0], printed
    assert runs.summary(tmp_path / "run")["status"] == "done"
