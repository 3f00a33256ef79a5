"""Streamed datasets on local files: disjoint islands, exact positions, held-out rows never trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowcomm.data import Data, DataConfig, HFDataset, Iid, Shard, TrainedBPE, build_data
from lowcomm.data.bytes_tokenizer import END_OF_TEXT
from lowcomm.data.streamed import _roles
from lowcomm.types import CheckpointError, ConfigError, DataError

ROWS = [f"[{i:03}]" + "x" * (i % 7) for i in range(60)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in two JSON Lines files and one Parquet file, and a small test split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path_factory.mktemp("rows")
    for name, rows in (("a", ROWS[:25]), ("b", ROWS[25:]), ("short", ROWS[:3])):
        (path / f"{name}.jsonl").write_text("".join(json.dumps({"text": r, "n": 1}) + "\n" for r in rows))
    pq.write_table(pa.table({"text": ROWS}), path / "c.parquet", row_group_size=7)
    (path / "named").mkdir()
    for name, rows in (("train", ROWS), ("test", ["held out"] * 5)):
        (path / "named" / f"{name}.jsonl").write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))
    return path


def config(folder: Path, files: str = "[ab].jsonl", kind: str = "json") -> DataConfig:
    return DataConfig(
        source=HFDataset(name=kind, data_files=str(folder / files)),
        seq_len=5,
        batch_size=3,
        validation_fraction=0.2,
        validation_sequences=4,
        cache_dir=folder / "cache",
    )


def rows_read(reader: Shard, batches: int) -> list[str]:
    """Whole rows that this reader hands out, in order."""
    ids = torch.cat([reader.next_batch()[0].flatten() for _ in range(batches)]).tolist()
    text = bytes(i if i < END_OF_TEXT else 0 for i in ids).decode()
    return text.split("\0")[:-1]


def validation_rows(data: Data) -> set[str]:
    ids = torch.cat([x.flatten() for x, _ in data.validation_batches()]).tolist()
    return set(bytes(i if i < END_OF_TEXT else 0 for i in ids).decode().split("\0")[:-1])


@pytest.mark.parametrize("islands", [1, 2, 3])
@pytest.mark.parametrize(("files", "kind"), [("[ab].jsonl", "json"), ("c.parquet", "parquet")])
def test_islands_share_the_rows(folder: Path, islands: int, files: str, kind: str):
    data = build_data(config(folder, files, kind), islands, 0)
    parts = []
    for island in range(islands):
        rows = rows_read(data.shard(island), 80 // islands)
        epoch = rows[: rows.index(rows[0], 1)]
        assert rows[len(epoch) : 2 * len(epoch)] == epoch[: len(rows) - len(epoch)], "a second epoch follows"
        parts.append(epoch)
    together = [row for part in parts for row in part]
    assert len(together) == len(set(together)) and set(together) < set(ROWS)
    assert not set(together) & validation_rows(data)
    assert 35 < len(together) < 60


def test_windows_are_contiguous(folder: Path):
    reader = build_data(config(folder), 1, 0).shard(0)
    first, second = reader.next_batch(), reader.next_batch()
    assert first[0].shape == (3, 5) and first[0].dtype == torch.int64
    for inputs, targets in (first, second):
        assert torch.equal(inputs.flatten()[1:], targets.flatten()[:-1])
    assert first[1][-1, -1] == second[0][0, 0]
    assert reader.tokens == 30


@pytest.fixture(scope="module")
def built(folder: Path) -> dict[tuple[str, int], Data]:
    kinds = (("[ab].jsonl", "json"), ("c.parquet", "parquet"))
    return {(k, n): build_data(config(folder, f, k), n, 0) for f, k in kinds for n in (2, 3)}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["json", "parquet"]),
    st.integers(2, 3),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_resume_gives_the_same_batches(built, kind: str, islands: int, legs: list[tuple[int, int]]):
    """Many resumes in a row, also without a batch between them, and into a reader that was elsewhere."""
    data = built[kind, islands]
    whole, reader = data.shard(1), data.shard(1)
    for batches, elsewhere in legs:
        for _ in range(batches):
            assert all(map(torch.equal, whole.next_batch(), reader.next_batch()))
        state = json.loads(json.dumps(reader.state_dict()))
        reader = data.shard(1)
        for _ in range(elsewhere):
            reader.next_batch()
        reader.load_state_dict(state)
        assert reader.tokens == whole.tokens
        assert reader.state_dict() == state
    for _ in range(8):
        for a, b in zip(whole.next_batch(), reader.next_batch(), strict=True):
            assert torch.equal(a, b)


def test_state_of_another_run_is_refused(built):
    reader = built["json", 2].shard(1)
    reader.next_batch()
    state = reader.state_dict()
    for change in (
        {"island": 0},
        {"seq_len": 6},
        {"leftover": [999]},
        {"leftover": None},
        {"dataset": 3},
        {"tokens": -1},
    ):
        with pytest.raises(CheckpointError):
            reader.load_state_dict({**state, **change})
        assert reader.state_dict() == state


def test_tuning_and_named_validation_split(folder: Path):
    named = replace(config(folder), source=HFDataset(name=str(folder / "named"), validation_split="test"))
    data = build_data(named, 1, 0)
    assert validation_rows(data) == {"held out"}
    assert set(rows_read(data.shard(0), 50)) == set(ROWS)
    for settings_ in (named, config(folder)):
        reported = validation_rows(build_data(settings_, 1, 0))
        tuning = build_data(replace(settings_, tuning=True), 1, 0)
        trained = set(rows_read(tuning.shard(0), 50))
        assert validation_rows(tuning) and not validation_rows(tuning) & (trained | reported)
        assert not trained & reported


@given(st.binary(max_size=8), st.sampled_from([None, "test"]))
def test_a_row_has_one_role(key: bytes, validation_split: str | None):
    base = DataConfig(validation_fraction=0.5)
    source = HFDataset(name="json", validation_split=validation_split)
    trained, reported = _roles(base, source)
    tuning_trained, tuned = _roles(replace(base, tuning=True), source)
    assert not (tuning_trained(key) and tuned(key))
    assert trained(key) == (tuning_trained(key) or tuned(key))
    if validation_split is None:
        assert trained(key) != reported(key)


def test_streamed_and_loaded_hold_out_the_same_rows(folder: Path):
    streamed = replace(config(folder), validation_sequences=1000)
    loaded = replace(streamed, source=replace(streamed.source, streaming=False))  # pyright: ignore[reportCallIssue]
    data = build_data(loaded, 2, 0)
    assert int(data.stats["train_documents"]) + int(data.stats["validation_documents"]) == len(ROWS)
    assert validation_rows(data) == validation_rows(build_data(streamed, 2, 0))


def test_trained_tokenizer_on_a_stream(folder: Path):
    data = build_data(replace(config(folder), tokenizer=TrainedBPE(vocab_size=270)), 2, 0)
    inputs, _ = data.shard(0).next_batch()
    assert data.vocab_size == 270 and int(inputs.max()) < 270
    assert data.stats["train_tokens"] == "streamed"


@pytest.mark.parametrize(
    ("change", "source", "islands", "says"),
    [
        ({}, {"column": "body"}, 1, r"data\.source\.column is 'body'.*'n', 'text'"),
        ({}, {"data_files": "/no/such/*.jsonl"}, 1, r"data\.source is .*/no/such.*no file matches"),
        ({}, {"split": "other"}, 1, r"data\.source is 'json split other .*Available splits"),
        ({}, {"column": "n"}, 1, r"row 1 is not a string"),
        ({"sharding": "by_folder"}, {}, 2, r"sharding is 'by_folder'.*'iid' or 'by_file'.*--data.source.no-streaming"),
        ({"sharding": "own"}, {}, 2, r"sharding is 'own'.*--data.source.no-streaming"),
        ({"partition": Iid()}, {}, 2, r"partition is .*None for a dataset that is streamed"),
        ({"sharding": "by_file"}, {}, 3, r"by_file with islands that divide the dataset's 2 files"),
    ],
)
def test_bad_dataset(folder: Path, change: dict, source: dict, islands: int, says: str):
    good = config(folder)
    bad = replace(good, source=replace(good.source, **source), **change)
    with pytest.raises(ConfigError, match=says) as info:
        build_data(bad, islands, 0)
    assert "\n" not in str(info.value) and "fix:" in str(info.value)


def test_too_few_rows(folder: Path):
    short = replace(config(folder, "short.jsonl"), validation_fraction=0.5)
    short = replace(short, source=replace(short.source, validation_split="train"))  # pyright: ignore[reportCallIssue]
    data = build_data(short, 5, 0)
    assert data.shard(0).next_batch()[0].shape == (3, 5)
    with pytest.raises(ConfigError, match="island 4 gets no training row"):
        data.shard(4)
    with pytest.raises(ConfigError, match=r"data\.seq_len is 12; legal: at most \d"):
        build_data(replace(short, seq_len=12, validation_sequences=1), 3, 0).shard(0)


def test_broken_row_in_the_middle(tmp_path: Path):
    good = "".join(json.dumps({"text": r}) + "\n" for r in ROWS)
    (tmp_path / "a.jsonl").write_text(good)
    (tmp_path / "b.jsonl").write_text("not json at all\n")
    reader = build_data(config(tmp_path), 1, 0).shard(0)
    with pytest.raises(DataError, match=r"b\.jsonl line 1 failed") as info:
        for _ in range(100):
            reader.next_batch()
    assert "\n" not in str(info.value)
