"""Local files as people have them: links, brackets, archives, byte order marks, arrays, CSV; bad rows skipped."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lowcomm.data import (
    Csv,
    DataConfig,
    HFDataset,
    Instructions,
    JsonLines,
    Messages,
    TextFiles,
    TrainedBPE,
    build_data,
)
from lowcomm.data.bpe_tokenizer import bounded
from lowcomm.data.files import matched, root_of
from lowcomm.types import ConfigError

ROWS = [{"text": f"row {i} é"} for i in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
TEXTS = [row["text"].encode() for row in ROWS]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def texts(source: TextFiles | JsonLines | Csv, directory: Path) -> list[bytes]:
    return [document.text for document in source.read(directory).documents]


# --- links


def test_a_link_to_a_parent_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "site" / "deep" / "a.jsonl", LINES)
    (tmp_path / "site" / "deep" / "up").symlink_to(tmp_path / "site")
    (tmp_path / "site" / "top").symlink_to(tmp_path)
    corpus = JsonLines(glob=f"{tmp_path}/site/**/*.jsonl").read(tmp_path)
    assert [d.file for d in corpus.documents] == ["deep/a.jsonl"] * 40
    assert corpus.stats["links_left_out"] == 2


def test_links_are_followed_once_and_real_files_come_first(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.txt", "b")
    write(tmp_path / "data" / "real" / "a.txt", "a")
    (tmp_path / "data" / "also").symlink_to(tmp_path / "data" / "real")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "linked2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again.txt").symlink_to(tmp_path / "data" / "real" / "a.txt")
    (tmp_path / "data" / "nowhere.txt").symlink_to(tmp_path / "none")
    (tmp_path / "data" / "self").symlink_to(tmp_path / "data" / "self")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    found = matched(f"{tmp_path}/data/**/*.txt")
    assert [name for name, _ in found.files] == ["linked/b.txt", "real/a.txt"]
    assert found.links_left_out == 5  # also, linked2, back, again.txt, nowhere.txt
    (tmp_path / "link_to_data").symlink_to(tmp_path / "data")
    assert [name for name, _ in matched(f"{tmp_path}/link_to_data/**/*.txt").files] == ["linked/b.txt", "real/a.txt"]
    one_level = matched(f"{tmp_path}/data/*/a.txt")
    assert [name for name, _ in one_level.files] == ["real/a.txt"] and one_level.links_left_out == 1


def test_a_streamed_dataset_reads_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    write(tmp_path / "data" / "a[1].jsonl", LINES)
    (tmp_path / "data" / "up").symlink_to(tmp_path / "data")
    for pattern in ("data/**/*.jsonl", "data/a[1].jsonl"):
        source = HFDataset(name="json", data_files=f"{tmp_path}/{pattern}")
        assert [row["text"] for row in source.open("train")] == [row["text"] for row in ROWS]


# --- names


def test_brackets_may_be_meant_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "run [1]" / "a[x].txt", "one")
    write(tmp_path / "run [1]" / "ax.txt", "two")
    literal = matched(f"{tmp_path}/run [1]/a[x].txt")
    assert [name for name, _ in literal.files] == ["a[x].txt"]
    assert root_of(f"{tmp_path}/run [1]/*.txt") == tmp_path / "run [1]"
    assert [name for name, _ in matched(f"{tmp_path}/run [1]/*.txt").files] == ["a[x].txt", "ax.txt"]
    assert [name for name, _ in matched(f"{tmp_path}/run ?1]/a[xy].txt").files] == ["run [1]/ax.txt"]
    assert [name for name, _ in matched(f"{tmp_path}/**").files] == ["run [1]/a[x].txt", "run [1]/ax.txt"]


def test_hidden_files_and_folders_stay_hidden(tmp_path: Path) -> None:
    write(tmp_path / ".git" / "a.txt", "no")
    write(tmp_path / ".b.txt", "no")
    write(tmp_path / "c.txt", "yes")
    assert [name for name, _ in matched(f"{tmp_path}/**/*.txt").files] == ["c.txt"]
    assert [name for name, _ in matched(f"{tmp_path}/.git/*.txt").files] == ["a.txt"]


def test_a_folder_is_no_pattern(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "c.txt", "yes")
    with pytest.raises(ConfigError, match=r"it is a folder: use 'folder/\*\*/\*'"):
        matched(f"{tmp_path}/folder")


# --- how files are packed and laid out


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_compressed_files_are_read_whatever_they_are_called(tmp_path: Path, pack) -> None:
    write(tmp_path / "a.jsonl", pack(LINES))
    assert texts(JsonLines(glob=f"{tmp_path}/a.jsonl"), tmp_path) == TEXTS
    write(tmp_path / "a.txt", pack(b"a text"))
    assert texts(TextFiles(glob=f"{tmp_path}/a.txt"), tmp_path) == [b"a text"]


def test_zstd_and_archives(tmp_path: Path) -> None:
    import zstandard

    write(tmp_path / "a.jsonl.zst", zstandard.ZstdCompressor().compress(LINES))
    assert texts(JsonLines(glob=f"{tmp_path}/*.zst"), tmp_path) == TEXTS
    write(tmp_path / "a.zip", b"PK\x03\x04rest")
    with pytest.raises(ConfigError, match="it is an archive: unpack it first"):
        JsonLines(glob=f"{tmp_path}/*.zip").read(tmp_path)
    for whole in (gzip.compress(LINES), lzma.compress(LINES), zstandard.ZstdCompressor().compress(LINES)):
        write(tmp_path / "torn", whole[: len(whole) // 2])
        with pytest.raises(ConfigError, match="compressed files that are whole") as info:
            JsonLines(glob=f"{tmp_path}/torn").read(tmp_path)
        assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "marked",
    [codecs.BOM_UTF8 + LINES, LINES.decode().encode("utf-16"), codecs.BOM_UTF16_BE + LINES.decode().encode("utf-16-be"),
     LINES.decode().encode("utf-32")],
)  # fmt: skip
def test_byte_order_marks(tmp_path: Path, marked: bytes) -> None:
    write(tmp_path / "a.jsonl", marked)
    assert texts(JsonLines(glob=f"{tmp_path}/a.jsonl"), tmp_path) == TEXTS
    assert texts(TextFiles(glob=f"{tmp_path}/a.jsonl"), tmp_path) == [LINES]


@pytest.mark.parametrize("body", ["plain words\n".encode("utf-16-le"), b"words\0words", b"\0"])
def test_nul_bytes_are_no_text(tmp_path: Path, body: bytes) -> None:
    """All three are valid UTF-8."""
    write(tmp_path / "a.txt", body)
    for source in (TextFiles, JsonLines, Csv):
        with pytest.raises(ConfigError, match=rf"a\.txt.*byte {body.index(0)} is NUL.*convert it") as info:
            source(glob=f"{tmp_path}/a.txt").read(tmp_path)
        assert "\n" not in str(info.value)


def test_an_array_is_read_like_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.json", "\n" + json.dumps(ROWS, indent=2))
    write(tmp_path / "b.json", json.dumps(ROWS))
    for name in ("a", "b"):
        assert texts(JsonLines(glob=f"{tmp_path}/{name}.json"), tmp_path) == TEXTS
    write(tmp_path / "c.json", json.dumps([*ROWS, {"text": None}]))
    with pytest.raises(ConfigError, match=r"c\.json row 41 is not a string"):
        JsonLines(glob=f"{tmp_path}/c.json").read(tmp_path)
    write(tmp_path / "d.json", json.dumps([*ROWS, "text"]))
    with pytest.raises(ConfigError, match=r"d\.json row 41 is a str"):
        JsonLines(glob=f"{tmp_path}/d.json").read(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.json",
            json.dumps({"data": ROWS}, indent=1),
            r"line 1 begins one object over several lines.*jq -c '.KEY\[\]'",
        ),
        ("a.json", json.dumps(ROWS, indent=1)[:-20], "line 1 begins an array that is torn"),
        ("a.json", json.dumps(["a", "b"], indent=1), "does not hold objects"),
        ("a.csv", "text\na", "is not JSON.*read it with Csv"),
        ("a.parquet", "PAR1", "is not JSON.*read it with Parquet"),
        ("a.csv.gz", gzip.compress(b"text\na", mtime=0), "is not JSON.*read it with Csv"),
    ],
)
def test_other_layouts_say_what_to_do(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=says) as info:
        JsonLines(glob=f"{tmp_path}/{name}").read(tmp_path)
    assert "\n" not in str(info.value)


# --- CSV


def test_csv(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", codecs.BOM_UTF8 + 'n,text\r\n1,"one, ""quoted""\nand on"\r\n2,\r\n3,é\r\n'.encode())
    source = Csv(glob=f"{tmp_path}/a.csv")
    assert texts(source, tmp_path) == [b'one, "quoted"\nand on', "é".encode()]
    write(tmp_path / "b.tsv", "text\tn\na, b\t1\n")
    assert texts(Csv(glob=f"{tmp_path}/b.tsv"), tmp_path) == [b"a, b"]
    write(tmp_path / "c.csv", "n;text\n1;a\n")
    assert texts(Csv(glob=f"{tmp_path}/c.csv", delimiter=";"), tmp_path) == [b"a"]
    with pytest.raises(ConfigError, match=r"parted at ',' \('n;text'\)"):
        Csv(glob=f"{tmp_path}/c.csv").read(tmp_path)
    write(tmp_path / "d.csv", "text\n" + "x" * 300_000 + "\n")
    assert len(texts(Csv(glob=f"{tmp_path}/d.csv"), tmp_path)[0]) == 300_000
    write(tmp_path / "e.csv", "instruction,input,output\nadd,1 and 2,3\nsay hi,,hi\n")
    documents = Csv(glob=f"{tmp_path}/e.csv", chat=Instructions()).read(tmp_path).documents
    assert [d.messages[0].content for d in documents] == ["add\n\n1 and 2", "say hi"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text,n\na,1,2\n", r"line 2 has more cells"),
        ("text,n\na\n", r"line 2 has fewer cells"),
        ('text\n"a\n', r"is not CSV"),
        ("text,text\na,b\n", "a column that is there once"),
        (b"text\n\xff\n", "byte 5 is not UTF-8"),
        ("", "all the matched|add text|files with rows"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str | bytes, says: str) -> None:
    write(tmp_path / "a.csv", text)
    with pytest.raises(ConfigError, match=says) as info:
        Csv(glob=f"{tmp_path}/a.csv").read(tmp_path)
    assert "\n" not in str(info.value)
    with pytest.raises(ConfigError, match=r"data.source.delimiter is ', '; legal: one character"):
        Csv(glob="*", delimiter=", ").check()


# --- bad rows


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", LINES + b'{"text": null}\n{"text": \n{"body": "a"}\n["a"]\n{"text": "\xff"}\n')
    source = JsonLines(glob=f"{tmp_path}/a.jsonl")
    with pytest.raises(ConfigError, match="line 41"):
        source.read(tmp_path)
    data = build_data(DataConfig(source=replace(source, skip_bad_rows=True), seq_len=8, cache_dir=tmp_path), 1, 0)
    assert data.stats["rows_skipped"] == 5
    assert "left out: 5 bad rows" in data.described()
    with pytest.raises(ConfigError, match=r"all 45 rows were skipped, the first as .*line 1"):
        replace(source, skip_bad_rows=True, column="body2").read(tmp_path)


def test_columns_that_look_like_conversations_are_pointed_out(tmp_path: Path) -> None:
    for row, says in (
        ({"messages": []}, r"chat=Messages\(\)"),
        ({"conversations": []}, r"chat=Messages\(column='conversations'"),
        ({"prompt": "a", "completion": "b"}, r"chat=PromptCompletion\(\)"),
        ({"instruction": "a", "output": "b"}, r"chat=Instructions\(\)"),
    ):
        write(tmp_path / "a.jsonl", json.dumps(row))
        with pytest.raises(ConfigError, match=says):
            JsonLines(glob=f"{tmp_path}/a.jsonl").read(tmp_path)


def test_an_input_is_not_left_out(tmp_path: Path) -> None:
    row = {"instruction": "add", "input": "1 and 2", "output": "3"}
    write(tmp_path / "a.jsonl", json.dumps(row) + "\n" + json.dumps({"instruction": "hi", "output": "hi"}))
    documents = JsonLines(glob=f"{tmp_path}/a.jsonl", chat=Instructions()).read(tmp_path).documents
    assert [d.messages[0].content for d in documents] == ["add\n\n1 and 2", "hi"]
    with pytest.raises(ConfigError, match="'about'"):
        JsonLines(glob=f"{tmp_path}/a.jsonl", chat=Instructions(input="about")).read(tmp_path)


# --- datasets with conversations


def chats(path: Path) -> Path:
    turns = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"answer {i}"}] for i in range(40)]
    return write(path, "".join(json.dumps({"messages": t, "n": 1}) + "\n" for t in turns))


def test_a_dataset_holds_conversations_streamed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    path = chats(tmp_path / "a.jsonl")
    source = HFDataset(name="json", data_files=str(path), chat=Messages())
    config = DataConfig(
        source=source, seq_len=64, batch_size=3, validation_fraction=0.2, validation_sequences=4, cache_dir=tmp_path
    )
    streamed = build_data(config, 2, 0)
    loaded = build_data(replace(config, source=replace(source, streaming=False), validation_sequences=1000), 2, 0)

    def answers(batches: list) -> set[bytes]:
        return {bytes(t for t in row.tolist() if 0 <= t < 256) for _, targets in batches for row in targets}

    held = answers(streamed.validation_batches())
    seen: list[set[bytes]] = []
    for island in range(2):
        shard, again = streamed.shard(island), streamed.shard(island)
        first = [shard.next_batch() for _ in range(3)]
        again.load_state_dict(json.loads(json.dumps(shard.state_dict())))
        assert shard.tokens == again.tokens > 0
        for _ in range(4):
            assert all(a.equal(b) for a, b in zip(shard.next_batch(), again.next_batch(), strict=True))
        seen.append(answers(first))
    assert all(b"answer " in text for text in (*seen[0], *seen[1]))
    assert not seen[0] & seen[1] and not held & (seen[0] | seen[1])
    assert held <= answers(loaded.validation_batches())
    short = replace(config, seq_len=16)
    with pytest.raises(ConfigError, match=r"seq_len is 16.* row \d"):
        build_data(short, 2, 0).shard(0)


# --- text without spaces


def test_long_words_are_learnt_in_pieces(tmp_path: Path) -> None:
    for text in ("a b", "x" * 256, "# " + "-" * 78 + "\n", " " * 80 + "a_b"):
        assert list(bounded(text)) == [text], "the tokenizer of usual text is what it was"
    for text in ("x" * 1000, "é" * 300 + " a " + "1" * 600, "-_" * 300, "\n" * 700):
        pieces = list(bounded(text))
        assert "".join(pieces) == text and max(map(len, pieces)) <= 600
    start = time.perf_counter()
    letters = "".join("ACGT"[(i * i // 7 + i) % 4] for i in range(200_000))
    TrainedBPE(vocab_size=1000).load(lambda: iter([letters.encode()]), tmp_path)
    assert time.perf_counter() - start < 60, "it took hours with the square of the length"
