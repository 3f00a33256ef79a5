"""Shards in memory: disjoint, complete, exact to resume, and refused where they would be empty."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.data import Data, DataConfig, JsonLines, PythonCorpus, TextFiles, TrainedBPE, build_data
from lowcomm.data.source import Document
from lowcomm.data.tokens import deal_files
from lowcomm.data.windows import TextWindows, WindowShard, evenly, window_count
from lowcomm.types import CheckpointError, ConfigError


def shard(
    tokens: int, seq_len: int, batch_size: int, part: int, parts: int, seed: int = 0, island: int = 0
) -> WindowShard:
    """A shard of the stream 0, 1, 2 ...: each token says where it is from."""
    return WindowShard(
        TextWindows(np.arange(tokens, dtype=np.int32), seq_len),
        seq_len=seq_len,
        batch_size=batch_size,
        part=part,
        parts=parts,
        seeds=(seed,),
        identity={"seed": seed, "island": island},
    )


def epoch_starts(reader: WindowShard) -> list[int]:
    """First tokens of one epoch of sequences."""
    assert reader._batch_size == 1
    return [int(reader.next_batch()[0][0, 0]) for _ in range(reader.windows_per_epoch)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**63), st.integers(0, 3))
def test_islands_are_disjoint_and_nearly_complete(tokens: int, seq_len: int, islands: int, seed: int, epoch: int):
    total = window_count(tokens, seq_len)
    if total < islands:
        return
    readers = [shard(tokens, seq_len, 1, i, islands, seed) for i in range(islands)]
    for _ in range(epoch):
        for reader in readers:
            epoch_starts(reader)
    starts = [start for reader in readers for start in epoch_starts(reader)]
    assert len(starts) == len(set(starts)) == total // islands * islands
    assert all(start % seq_len == 0 and start + seq_len < tokens for start in starts)


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 200), st.integers(1, 6), st.integers(1, 40), st.integers(0, 30), st.integers(0, 30))
def test_resume_gives_the_same_batches(tokens: int, seq_len: int, batch_size: int, before: int, between: int):
    """Batches may be larger than an epoch; the state goes through JSON, and back as well as forth."""
    first = shard(tokens, seq_len, batch_size, 1, 2)
    for _ in range(before):
        first.next_batch()
    state = json.loads(json.dumps(first.state_dict()))
    expected = [first.next_batch() for _ in range(3)]
    second = shard(tokens, seq_len, batch_size, 1, 2)
    for _ in range(between):
        second.next_batch()
    second.load_state_dict(state)
    assert second.tokens == before * batch_size * seq_len
    for (a, b), (c, d) in zip(expected, [second.next_batch() for _ in range(3)], strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert first.state_dict() == second.state_dict()


def test_batches_and_accounting():
    reader = shard(100, 7, 4, 0, 1)
    inputs, targets = reader.next_batch()
    assert inputs.shape == targets.shape == (4, 7)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.is_contiguous() and torch.equal(targets, inputs + 1)
    assert reader.tokens == 28


def test_epochs_and_seeds_have_their_own_order():
    reader = shard(500, 5, 1, 0, 1)
    first, second = epoch_starts(reader), epoch_starts(reader)
    assert sorted(first) == sorted(second) and first != second
    assert first != epoch_starts(shard(500, 5, 1, 0, 1, seed=1))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed is 1 in the checkpoint and 0 in this run"),
        ({"seq_len": 6}, "seq_len is 6"),
        ({"island": 3}, "island is 3"),
        ({"kind": "stream"}, "kind is 'stream'"),
        ({"position": -1}, "position is -1"),
        ({"position": 10_000}, "position is 10000"),
        ({"position": True}, "position is True"),
        ({"epoch": 1.5}, "epoch is 1.5"),
        ({"tokens": None}, "tokens is None"),
    ],
)
def test_state_of_another_run_is_refused(change: dict, says: str):
    reader = shard(100, 5, 2, 0, 1)
    reader.next_batch()
    before = reader.state_dict()
    with pytest.raises(CheckpointError) as info:
        reader.load_state_dict({**before, **change})
    assert says in str(info.value) and "\n" not in str(info.value)
    assert reader.state_dict() == before


@given(st.integers(0, 200), st.integers(1, 50))
def test_validation_windows_are_different_and_spread(total: int, most: int):
    chosen = evenly(total, most)
    assert len(chosen) == min(total, most) == len(set(chosen.tolist()))
    if len(chosen):
        assert chosen.min() == 0 and chosen.max() < total
        gaps = np.diff([*chosen, total])
        assert gaps.max() - gaps.min() <= 1


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 99)), min_size=1), st.integers(1, 4))
def test_files_are_dealt_whole_and_balanced(rows: list[tuple[str, int]], islands: int):
    documents = [Document(file, b"", b"") for file, _ in rows]
    lengths = np.array([length for _, length in rows])
    owned = deal_files(documents, lengths, islands)
    assert sorted(np.concatenate(owned).tolist()) == list(range(len(rows)))
    files = [{documents[i].file for i in part} for part in owned]
    assert sum(map(len, files)) == len(set.union(*files)), "a file is on two islands"
    loads = [int(lengths[part].sum()) for part in owned]
    sizes = {f: sum(n for g, n in rows if g == f) for f, _ in rows}
    assert max(loads) - min(loads) <= max(sizes.values())


@pytest.fixture
def corpus(tmp_path: Path) -> DataConfig:
    """12 files whose letters name the file; the byte tokenizer keeps them visible."""
    for i in range(12):
        (tmp_path / f"{i:02}.txt").write_text(chr(65 + i) * (40 + 10 * i))
    return DataConfig(
        source=TextFiles(glob=f"{tmp_path}/*.txt"),
        seq_len=8,
        batch_size=2,
        validation_fraction=0.2,
        cache_dir=tmp_path / "cache",
    )


def letters(data: Data, island: int, batches: int = 60) -> set[int]:
    reader = data.shard(island)
    return {t for _ in range(batches) for t in reader.next_batch()[0].unique().tolist()} - {256}


def validation_letters(data: Data) -> set[int]:
    return {t for x, _ in data.validation_batches() for t in x.unique().tolist()} - {256}


def test_built_islands_share_each_epoch(tmp_path: Path):
    """Each window is one number: no two islands hand out the same one in an epoch."""
    (tmp_path / "a.txt").write_text("".join(f"{i:04}" for i in range(2000)))
    config = DataConfig(source=TextFiles(glob=f"{tmp_path}/a.txt"), seq_len=4, batch_size=1)
    data = build_data(config, 3, 0)
    readers = [data.shard(island) for island in range(3)]
    per_epoch = int(data.stats["train_tokens"]) // 4 // 3 - 1
    starts = [tuple(r.next_batch()[0][0].tolist()) for r in readers for _ in range(per_epoch)]
    assert len(set(starts)) == len(starts) > 1700


def test_by_file_islands_read_different_files(corpus: DataConfig):
    data = build_data(replace(corpus, sharding="by_file"), 3, 0)
    parts = [letters(data, island) for island in range(3)]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts))
    assert not set.union(*parts) & validation_letters(data)


def test_validation_is_held_out_and_fixed(corpus: DataConfig):
    data = build_data(replace(corpus, validation_sequences=5), 2, 0)
    batches = data.validation_batches()
    assert [tuple(x.shape) for x, _ in batches] == [(2, 8), (2, 8), (1, 8)]
    assert all(x.dtype == torch.int64 and torch.equal(x[:, 1:], y[:, :-1]) for x, y in batches)
    other = build_data(replace(corpus, validation_sequences=5, sharding="by_file"), 3, 7)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, other.validation_batches(), strict=True))
    assert not validation_letters(data) & (letters(data, 0) | letters(data, 1))
    assert data.stats["validation_sequences"] == 5


def test_tuning_leaves_the_reported_files_alone(corpus: DataConfig):
    reported = validation_letters(build_data(corpus, 1, 0))
    tuning = build_data(replace(corpus, tuning=True), 1, 0)
    assert reported and validation_letters(tuning)
    assert not reported & (validation_letters(tuning) | letters(tuning, 0))
    assert not validation_letters(tuning) & letters(tuning, 0)


def test_stats_count_tokens_and_bytes(corpus: DataConfig):
    stats = build_data(corpus, 2, 0).stats
    assert stats["files"] == 12
    assert stats["train_bytes"] + stats["validation_bytes"] == sum(40 + 10 * i for i in range(12))  # pyright: ignore[reportOperatorIssue]
    assert stats["train_tokens"] == stats["train_bytes"] + stats["train_documents"]  # pyright: ignore[reportOperatorIssue]


def test_shard_of_other_text_is_refused(corpus: DataConfig, tmp_path: Path):
    data = build_data(corpus, 2, 0)
    state = data.shard(0).state_dict()
    data.shard(0).load_state_dict(state)
    with pytest.raises(CheckpointError, match="island is 0"):
        data.shard(1).load_state_dict(state)
    for i in range(12):
        (tmp_path / f"{i:02}.txt").write_text(chr(97 + i) * (40 + 10 * i))
    with pytest.raises(CheckpointError, match="text_sha256"):
        build_data(corpus, 2, 0).shard(0).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "islands", "says"),
    [
        ({"seq_len": 5000}, 1, r"data\.seq_len is 5000; legal: at most \d+.*shorten"),
        ({"seq_len": 300}, 8, r"data\.seq_len is 300; legal: at most \d+, 8 islands.*fewer islands"),
        ({"seq_len": 1}, 5000, r"legal: nothing"),
        ({"sharding": "by_file"}, 12, r"data\.sharding is 'by_file'.*island \d+ of 12 gets no file"),
        ({"sharding": "by_file", "seq_len": 200}, 8, r"the files of island \d+ have \d+ tokens"),
    ],
)
def test_empty_shard_or_long_sequence(corpus: DataConfig, change: dict, islands: int, says: str):
    with pytest.raises(ConfigError, match=says):
        build_data(replace(corpus, **change), islands, 0)


@pytest.mark.parametrize("sharding", ["iid", "by_file"])
def test_longest_legal_sequence_is_legal(corpus: DataConfig, sharding):
    """The length that the error names works, one more does not."""
    long = replace(corpus, sharding=sharding, seq_len=10**6, validation_fraction=0.5)
    with pytest.raises(ConfigError) as info:
        build_data(long, 3, 0)
    most = int(str(info.value).split("at most ")[1].split(",")[0])
    with pytest.raises(ConfigError, match="at most"):
        build_data(replace(long, seq_len=most + 1), 3, 0)
    try:
        build_data(replace(long, seq_len=most), 3, 0)
    except ConfigError as error:  # then only for another part, which is smaller
        assert int(str(error).split("at most ")[1].split(",")[0]) < most


def test_held_out_text_too_short(corpus: DataConfig, tmp_path: Path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.txt").write_text("abcdefgh\n" * 10)
    config = replace(corpus, source=TextFiles(glob=f"{tmp_path}/only/*"), seq_len=30)
    with pytest.raises(ConfigError, match="held-out text has"):
        build_data(config, 1, 0)


def test_bad_seed_and_island(corpus: DataConfig):
    with pytest.raises(ConfigError, match="seed"):
        build_data(corpus, 2, -1)
    data = build_data(corpus, 2, 0)
    for island in (-1, 2):
        with pytest.raises(ConfigError, match="0 to 1"):
            data.shard(island)


def test_token_cache_is_used_and_rebuilt_when_corrupt(corpus: DataConfig, monkeypatch):
    config = replace(corpus, tokenizer=TrainedBPE(vocab_size=280))
    expected = build_data(config, 2, 0).shard(1).next_batch()[0]
    paths = sorted((config.cache_dir / "tokens").glob("*.npy"))
    assert len(paths) == 2
    whole = [path.read_bytes() for path in paths]
    for damaged in (b"", whole[0][:50], whole[0][:-40] + b"\xff" + whole[0][-39:]):
        for path in paths:
            path.write_bytes(damaged)
        assert torch.equal(build_data(config, 2, 0).shard(1).next_batch()[0], expected)
        assert [path.read_bytes() for path in paths] == whole
    monkeypatch.setattr("lowcomm.data.tokenizer.BackendTokenizer.encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(build_data(config, 2, 0).shard(1).next_batch()[0], expected)


def test_token_bytes_add_up_to_the_corpus(corpus: DataConfig):
    config = replace(corpus, tokenizer=TrainedBPE(vocab_size=280))
    data = build_data(config, 1, 0)
    assert data.token_bytes.shape == (data.vocab_size,) == (280,)
    assert data.token_bytes.dtype == torch.int64
    for x, _ in data.validation_batches():
        assert int(data.token_bytes[x].sum()) > 0


def test_one_jsonl_file_is_split_by_row(tmp_path: Path):
    rows = "".join(json.dumps({"text": f"row number {i} " * 5}) + "\n" for i in range(200))
    (tmp_path / "a.jsonl").write_text(rows)
    config = DataConfig(source=JsonLines(glob=f"{tmp_path}/a.jsonl"), seq_len=16)
    stats = build_data(config, 2, 0).stats
    assert stats["train_documents"] + stats["validation_documents"] == 200  # pyright: ignore[reportOperatorIssue]
    assert 0 < int(stats["validation_documents"]) < 30


def test_python_corpus_is_quick_and_the_tokenizer_is_saved(tmp_path: Path):
    from transformers import AutoTokenizer

    build_data(DataConfig(), 4, 0)
    start = time.process_time()
    data = build_data(DataConfig(source=PythonCorpus()), 4, 0)
    assert time.process_time() - start < 1.5
    assert data.vocab_size == 260
    data.save_tokenizer(tmp_path)
    inputs, _ = data.validation_batches()[0]
    text = bytes(inputs[0][inputs[0] < 256].tolist()).decode(errors="ignore")
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == list(text.encode())
