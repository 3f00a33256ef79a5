"""Sources and the split: same text everywhere, nothing on both sides, errors that say where."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowcomm.data import DataConfig, HFDataset, JsonLines, Parquet, PythonCorpus, TextFiles, TrainedBPE, build_data
from lowcomm.data.files import matched
from lowcomm.data.python_corpus import read_tree
from lowcomm.data.source import Corpus, Document, Message
from lowcomm.data.split import fraction_of, hold_out, split
from lowcomm.types import ConfigError

DOCUMENTS = st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=30, unique=True).map(
    lambda names: [Document(n, n.encode(), n.encode()) for n in names]
)


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small library: two good files, a copy, one not UTF-8, and folders that are left out."""
    write(tmp_path / "b.py", "b = 1\n")
    write(tmp_path / "a" / "z.py", "z = 'é'\n")
    write(tmp_path / "copy.py", "b = 1\n")
    write(tmp_path / "latin.py", b"x = '\xe9'\n")
    write(tmp_path / "empty.py", "")
    write(tmp_path / "notes.txt", "no source")
    for folder in ("site-packages", "test", "a/tests", "__pycache__", "idlelib/idle_test"):
        write(tmp_path / folder / "out.py", f"left_out = {folder!r}\n")
    return tmp_path


def test_tree_is_sorted_deduplicated_and_counted(tree: Path):
    corpus = read_tree(tree, None)
    assert [d.file for d in corpus.documents] == ["a/z.py", "b.py"]
    assert corpus.stats == {"files": 2, "files_skipped_undecodable": 1, "files_duplicate": 1}


def test_python_corpus_is_real_and_does_not_depend_on_the_directory(tmp_path: Path, monkeypatch):
    corpus = PythonCorpus().read(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert PythonCorpus().read(tmp_path) == corpus
    names = {d.file for d in corpus.documents}
    assert {"json/decoder.py", "os.py"} <= names
    assert not any("site-packages" in n or "/test" in n or "_sysconfigdata" in n for n in names)
    assert sum(len(d.text) for d in corpus.documents) > 5_000_000


def test_max_bytes_is_a_spread_sample(tmp_path: Path):
    whole = {d.file for d in PythonCorpus().read(tmp_path).documents}
    part = PythonCorpus(max_bytes=300_000).read(tmp_path).documents
    assert 200_000 < sum(len(d.text) for d in part) <= 300_000
    assert {d.file for d in part} < whole
    assert len({d.file[0] for d in part}) > 5, "not the start of the alphabet"


def test_max_bytes_too_small(tree: Path):
    with pytest.raises(ConfigError, match="raise max_bytes"):
        read_tree(tree, 2)


def test_text_files_are_named_below_the_first_wildcard(tmp_path: Path, monkeypatch):
    write(tmp_path / "x" / "b.txt", "two")
    write(tmp_path / "x" / "sub" / "a.txt", "one")
    write(tmp_path / "x" / "sub" / "copy.txt", "one")
    absolute = TextFiles(glob=f"{tmp_path}/x/**/*.txt").read(tmp_path)
    assert [(d.file, d.text) for d in absolute.documents] == [("b.txt", b"two"), ("sub/a.txt", b"one")]
    assert absolute.stats["files_duplicate"] == 1
    monkeypatch.chdir(tmp_path)
    assert TextFiles(glob="x/**/*.txt").read(tmp_path) == absolute
    assert matched("x/b.txt").files[0][0] == "b.txt"


def test_json_lines(tmp_path: Path):
    write(tmp_path / "a.jsonl", '{"text": "one\\u00e9"}\n\n{"text": "", "n": 1}\r\n{"text": "two"}')
    corpus = JsonLines(glob=f"{tmp_path}/*.jsonl").read(tmp_path)
    assert [d.text.decode() for d in corpus.documents] == ["oneé", "two"]
    assert {d.file for d in corpus.documents} == {"a.jsonl"}
    assert len({d.key for d in corpus.documents}) == 2, "rows are split by their text, not by the file"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "\xff"}', "UTF-8"),
        (b'{"text": ', "not JSON"),
        (b'["text"]', "is a list"),
        (b'{"body": "a", "title": "b"}', "'body', 'title'"),
        (b'{"text": 3}', "not a string"),
        (b'{"text": null}', "not a string"),
        (b'{"text": "\\ud800"}', "UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_bad_json_line_is_named(tmp_path: Path, line: bytes, says: str):
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(ConfigError) as info:
        JsonLines(glob=str(path)).read(tmp_path)
    message = str(info.value)
    assert says in message and f"{path} line 2" in message and "fix:" in message and "\n" not in message


def test_parquet(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", "", "twoé"], "n": [1, 2, 3]}), tmp_path / "a.parquet")
    source = Parquet(glob=f"{tmp_path}/*.parquet")
    assert [d.text.decode() for d in source.read(tmp_path).documents] == ["one", "twoé"]
    with pytest.raises(ConfigError, match="'n', 'text'"):
        replace(source, column="body").read(tmp_path)
    with pytest.raises(ConfigError, match=r"a\.parquet row 1 is not a string"):
        replace(source, column="n").read(tmp_path)
    write(tmp_path / "b.parquet", (tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(ConfigError, match=r"b\.parquet cannot be read as Parquet"):
        source.read(tmp_path)


@pytest.mark.parametrize("kind", [TextFiles, JsonLines, Parquet])
def test_no_file_matches(kind: type[TextFiles | JsonLines | Parquet], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.source\.glob is .*matches"):
        kind(glob=f"{tmp_path}/*.none").read(tmp_path)


def test_empty_and_undecodable_text_files(tmp_path: Path):
    write(tmp_path / "a.txt", "")
    with pytest.raises(ConfigError, match="empty"):
        TextFiles(glob=f"{tmp_path}/*.txt").read(tmp_path)
    path = write(tmp_path / "b.txt", b"ab\xff")
    with pytest.raises(ConfigError, match=rf"{path}.*byte 2"):
        TextFiles(glob=f"{tmp_path}/*.txt").read(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path: Path):
    write(tmp_path / "a.txt", "text").chmod(0)
    with pytest.raises(ConfigError, match=r"a\.txt"):
        TextFiles(glob=f"{tmp_path}/*.txt").read(tmp_path)


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'lowcomm\[data\]'"):
        HFDataset(name="json").check()


@given(DOCUMENTS, st.floats(0.01, 0.5))
def test_split_is_a_partition(documents: list[Document], fraction: float):
    kept, held = hold_out(documents, fraction, "validation")
    assert kept and held
    pieces = {d.key: d.text for d in kept}
    for d in held:
        pieces[d.key] = pieces.get(d.key, b"") + d.text
    assert pieces == {d.key: d.text for d in documents}


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=40), st.floats(0.01, 0.5), st.booleans())
def test_the_share_is_near_the_fraction_whatever_the_names(sizes: list[int], fraction: float, tuning: bool):
    """Every text of some length can be held out to a share between half and twice the fraction."""
    documents = [Document(f"{i}", f"{i}".encode(), b"a line\n" * size) for i, size in enumerate(sizes)]
    total = sum(len(d.text) for d in documents)
    assume(total * fraction > 64)
    train, held = split(Corpus(documents=documents), fraction, tuning)
    share = sum(len(d.text) for d in held) / sum(len(d.text) for d in (*train, *held))
    assert fraction / 2.5 < share < 2.5 * fraction  # cuts go to the start of a line
    if not tuning:
        assert b"".join(sorted(d.text for d in (*train, *held))).count(b"a line\n") == sum(sizes), "at line starts"


@pytest.mark.parametrize("names", [("train.txt", "valid.txt"), ("data.txt", "LICENSE.txt")])
def test_a_large_file_is_trained_on_whatever_it_is_called(tmp_path: Path, names: tuple[str, str]):
    write(tmp_path / names[0], "the large part. " * 20000)
    write(tmp_path / names[1], "small part, other text. " * 200)
    config = DataConfig(source=TextFiles(glob=f"{tmp_path}/*.txt"), seq_len=32, cache_dir=tmp_path / "c")
    data = build_data(config, 2, 0)
    assert data.stats["validation_bytes"] == pytest.approx(0.05 * 324_800, rel=0.02)
    assert "308,560 bytes to train on, 16,240 held out (5.0%)" in data.described()


def test_many_files_are_held_out_by_hash():
    """Nothing but its name decides on which side a file of a large corpus is."""
    documents = [Document(f"{i}", f"{i}".encode(), b"text" * 50) for i in range(300)]
    kept, held = hold_out(documents, 0.1, "validation")
    assert (
        max(fraction_of(d.key, "validation") for d in held) < 0.1 < min(fraction_of(d.key, "validation") for d in kept)
    )


def test_each_folder_holds_out_a_part_of_its_own():
    documents = [
        Document(f"{site}/{i}.txt", f"{site}/{i}".encode(), f"{site} {i} line\n".encode() * 400)
        for site in ("a", "b")
        for i in range(3)
    ]
    train, held = split(Corpus(documents=documents), 0.1, tuning=False, by_folder=True)
    for side, share in ((train, 0.9), (held, 0.1)):
        for site in ("a", "b"):
            own = sum(len(d.text) for d in side if d.file.startswith(site))
            assert own == pytest.approx(share * 3 * 400 * 9, rel=0.6)


def test_conversations_are_never_cut():
    turns = (Message("user", "q" * 40), Message("assistant", "a" * 40))
    documents = [Document(f"{i}", f"{i}".encode(), b"x" * size, turns) for i, size in enumerate((90, 4000, 3000))]
    kept, held = hold_out(documents, 0.05, "validation")
    assert sorted(len(d.text) for d in kept) == [3000, 4000] and [len(d.text) for d in held] == [90]
    kept, held = hold_out(documents, 0.4, "validation")
    assert [len(d.text) for d in kept] == [4000], "the share is as close as whole conversations allow"


@given(DOCUMENTS, st.floats(0.01, 0.5))
def test_tuning_never_sees_the_reported_set(documents: list[Document], fraction: float):
    corpus = Corpus(documents=documents)
    train, reported = split(corpus, fraction, tuning=False)
    if len(train) < 2:
        return
    tuning_train, tuning_held = split(corpus, fraction, tuning=True)

    def pieces(documents: list[Document]) -> set[tuple[bytes, bytes]]:
        return {(d.key, d.text) for d in documents}

    assert not pieces(reported) & pieces([*tuning_train, *tuning_held])
    assert not pieces(tuning_train) & pieces(tuning_held)
    for d in train:
        mine = b"".join(x.text for side in (tuning_train, tuning_held) for x in side if x.key == d.key)
        assert mine == d.text


def test_hash_is_pinned():
    """The split of published numbers must never move."""
    assert fraction_of(b"json/decoder.py", "validation") == pytest.approx(0.6843820167064969, abs=1e-9)


@settings(max_examples=50)
@given(st.text(st.sampled_from("aé🎉\n"), min_size=2, max_size=40), st.floats(0.01, 0.5))
def test_single_file_is_cut_between_characters(text: str, fraction: float):
    raw = text.encode()
    try:
        (kept,), (held,) = hold_out([Document("a", b"a", raw)], fraction, "validation")
    except ConfigError:
        return
    assert kept.text.decode() + held.text.decode() == text


def test_single_file_is_cut_at_a_line():
    text = b"0123456\n" * 100
    (kept,), (held,) = hold_out([Document("a", b"a", text)], 0.1, "validation")
    assert len(held.text) == 72 and held.text.startswith(b"0") and kept.text + held.text == text
    with pytest.raises(ConfigError, match="validation_fraction"):
        hold_out([Document("a", b"a", b"x")], 0.1, "validation")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seq_len": 0}, "data.seq_len"),
        ({"batch_size": -1}, "data.batch_size"),
        ({"validation_sequences": 0}, "data.validation_sequences"),
        ({"validation_fraction": 0.0}, "data.validation_fraction"),
        ({"validation_fraction": 0.51}, "data.validation_fraction"),
        ({"validation_fraction": float("nan")}, "data.validation_fraction"),
        ({"sharding": "by_row"}, "data.sharding"),
        ({"cache_dir": Path(__file__)}, "data.cache_dir"),
        ({"source": PythonCorpus(max_bytes=0)}, "data.source.max_bytes"),
        ({"source": HFDataset(name="")}, "data.source.name"),
        ({"tokenizer": TrainedBPE(vocab_size=256)}, "data.tokenizer.vocab_size"),
        ({"tokenizer": TrainedBPE(train_bytes=0)}, "data.tokenizer.train_bytes"),
    ],
)
def test_each_field_out_of_range(change: dict, field: str):
    DataConfig().check(islands=1)
    with pytest.raises(ConfigError) as info:
        replace(DataConfig(), **change).check(islands=1)
    message = str(info.value)
    assert message.startswith(f"{field} is ") and "legal: " in message and "fix: " in message


def test_islands_out_of_range():
    with pytest.raises(ConfigError, match=r"data\.islands is 0"):
        DataConfig().check(islands=0)


def test_every_field_is_on_the_command_line(capsys: pytest.CaptureFixture[str]):
    import tyro

    parsed = tyro.cli(DataConfig, args=["--source.max-bytes", "1000", "--sharding", "by_file", "--tuning"])
    assert parsed == DataConfig(source=PythonCorpus(max_bytes=1000), sharding="by_file", tuning=True)
    other = DataConfig(source=JsonLines(glob="a"), tokenizer=TrainedBPE())
    parsed = tyro.cli(DataConfig, default=other, args=["--source.column", "body", "--tokenizer.vocab-size", "300"])
    assert parsed == replace(other, source=JsonLines(glob="a", column="body"), tokenizer=TrainedBPE(vocab_size=300))
    with pytest.raises(SystemExit):
        tyro.cli(DataConfig, default=other, args=["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("Tokens per sequence", "Column with the text", "Number of ids"):
        assert text in shown
