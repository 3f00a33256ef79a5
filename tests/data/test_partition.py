"""Clients made of one corpus: every row at one client, both sides at each, equal texts once; docstrings of packages."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowcomm.config import RunConfig
from lowcomm.config_file import check_resumable, to_dict
from lowcomm.data import (
    ByLength,
    DataConfig,
    Dirichlet,
    Docstrings,
    HFDataset,
    Iid,
    JsonLines,
    NaturalId,
    Partition,
    Pathological,
    Quantity,
    TextFiles,
    build_data,
)
from lowcomm.data.dealing import deal, unique
from lowcomm.data.docstrings import functions
from lowcomm.data.source import Corpus, Document
from lowcomm.types import ConfigError
from tests import methods
from tests.support import runs


def corpus(labels: list[int], validation: bool = False) -> Corpus:
    """One document per entry, with texts of different lengths."""
    documents = [
        Document(f"{label}/{i}", f"{i}".encode(), f"{'x' * (i * 7 % 23)} text {i}".encode(), (), f"label{label}")
        for i, label in enumerate(labels)
    ]
    half = documents[1::2] if validation else None
    return Corpus(documents=documents[::2] if validation else documents, validation=half)


LABELS = st.lists(st.integers(0, 5), min_size=60, max_size=150)


@settings(max_examples=40, deadline=None)
@given(LABELS, st.integers(1, 4), st.integers(0, 2**32), st.sampled_from(methods.PARTITIONS), st.booleans())
def test_every_row_is_at_one_client_and_every_client_has_both_sides(
    labels: list[int], islands: int, seed: int, partition: Partition, tuning: bool
) -> None:
    labels = [*labels, *range(6)]
    config = DataConfig(partition=partition, validation_fraction=0.2, tuning=tuning)
    partition.check(islands)
    whole = corpus(labels)
    try:
        train, held = deal(config, partition, whole, islands, seed)
    except ConfigError as error:  # few rows and many clients: said, not done by halves
        assert "\n" not in str(error) and ("data.partition" in str(error) or "validation_fraction" in str(error))
        return
    again, _ = deal(config, partition, whole, islands, seed)
    assert np.array_equal(train.owners, again.owners)  # type: ignore[arg-type]
    keys = [d.key for d in (*train.documents, *held.documents)]
    assert len(keys) == len(set(keys)) and set(keys) <= {d.key for d in whole.documents}
    assert tuning or len(keys) == len(labels)
    for island in range(islands):
        assert len(train.of(island)) and len(held.of(island))


@pytest.mark.parametrize("tuning", [False, True])
def test_a_client_with_one_large_file_holds_out_a_share_of_it(tuning: bool) -> None:
    sizes = {"train.txt": 4000, "valid.txt": 60}
    documents = [
        Document(f"{site}/{name}", f"{site}/{name}".encode(), f"{site} of {name}\n".encode() * lines)
        for site in ("a", "b")
        for name, lines in sizes.items()
    ]
    config = DataConfig(partition=NaturalId(), validation_fraction=0.1, tuning=tuning)
    train, held = deal(config, NaturalId(), Corpus(documents=documents), 2, 0)
    for island in range(2):
        trained, kept = (sum(len(side.documents[i].text) for i in side.of(island)) for side in (train, held))
        assert 0.05 < kept / (kept + trained) < 0.2
    assert {d.group for d in (train.documents[i] for i in train.of(0))} == {"a"}


def owners(partition: Partition, labels: list[int], islands: int, seed: int = 0) -> np.ndarray:
    return partition.owners(corpus(labels).documents, islands, np.random.default_rng(seed))


def tables(partition: Partition, labels: list[int], islands: int) -> np.ndarray:
    """Rows [islands, labels]."""
    found = owners(partition, labels, islands)
    return np.array([[np.sum((found == i) & (np.array(labels) == k)) for k in range(4)] for i in range(islands)])


FOUR = [i % 4 for i in range(400)]


def test_what_each_partition_is_for() -> None:
    assert np.all(np.bincount(owners(Iid(), FOUR, 8)) == 50)
    natural = tables(NaturalId(), FOUR, 4)
    assert np.array_equal(natural, np.diag([100] * 4))
    packed = tables(NaturalId(), [0] * 300 + [1] * 50 + [2] * 50 + [3] * 50, 2)
    assert packed.tolist() == [[300, 0, 0, 0], [0, 50, 50, 50]]
    few = tables(Pathological(labels_per_client=2), FOUR, 4)
    assert np.all((few > 0).sum(1) == 2) and few.sum() == 400 and np.all(few.sum(0) == 100)
    assert np.all(tables(Pathological(labels_per_client=4), FOUR, 4) == 25)
    skewed, even = tables(Dirichlet(alpha=0.1), FOUR, 4), tables(Dirichlet(alpha=1e6), FOUR, 4)
    assert np.abs(even - 25).max() <= 2
    assert (skewed / skewed.sum(1, keepdims=True)).max(1).min() > 0.4  # each client has a label of its own
    sizes, equal = (np.bincount(owners(Quantity(alpha=a), FOUR, 4), minlength=4) for a in (0.3, 1e6))
    assert sizes.max() > 2 * equal.max() and np.abs(equal - 100).max() <= 2
    lengths = np.array([len(d.text) for d in corpus(FOUR).documents])
    found = owners(ByLength(), FOUR, 4)
    assert all(lengths[found == i].max() <= lengths[found == i + 1].min() for i in range(3))


@pytest.mark.parametrize(
    ("partition", "islands", "words"),
    [
        (Dirichlet(alpha=0.0), 2, "data.partition.alpha is 0.0; legal: above 0"),
        (Dirichlet(alpha=float("nan")), 2, "data.partition.alpha"),
        (Quantity(alpha=-1.0), 2, "data.partition.alpha is -1.0"),
        (Dirichlet(min_rows=1), 2, "data.partition.min_rows is 1"),
        (Pathological(labels_per_client=0), 2, "data.partition.labels_per_client is 0"),
        (Pathological(labels_per_client=1), 2, "labels_per_client is 1; legal: 2 to 4, as 2 clients share 4 labels"),
        (Pathological(labels_per_client=5), 2, "labels_per_client is 5; legal: 2 to 4"),
        (NaturalId(), 5, "4 labels are fewer than 5 clients"),
        (Iid(), 300, "400 rows are fewer than two for each of 300 clients"),
        (ByLength(), 300, "400 rows are fewer than two"),
        (Dirichlet(alpha=0.01, min_rows=101), 4, "in 100 draws some client has at most"),
        (Quantity(alpha=0.01, min_rows=101), 4, "in 100 draws some client has at most"),
    ],
)
def test_bad_partitions(partition: Partition, islands: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        partition.check(islands)
        owners(partition, FOUR, islands)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_equal_texts_are_kept_once_and_held_out_ones_win() -> None:
    """The peers' leak: a row in the training text of one client and in the held-out text of another."""
    texts = [b"a", b"b", b"a", b"c", b"b"]
    documents = [Document(f"{i}", f"{i}".encode(), t) for i, t in enumerate(texts)]
    found, removed = unique(Corpus(documents=documents, validation=[Document("v", b"v", b"c"), documents[0]]))
    assert [d.text for d in found.documents] == [b"b"] and [d.text for d in found.validation or []] == [b"c", b"a"]
    assert removed == 4


def write_rows(path: Path) -> Path:
    with path.open("w", encoding="utf-8") as f:
        for i in range(60):
            text = f"{i % 50} " + "many words " * (1 + i % 50 % 3)  # the last ten are the first again
            f.write(json.dumps({"text": text, "topic": "ab"[i % 2], "year": 1999 + i % 3}) + "\n")
    return path


def rows_config(path: Path, **changes: Any) -> DataConfig:
    source = JsonLines(glob=str(path), label_column="topic")
    return dataclasses.replace(
        DataConfig(source=source, seq_len=8, batch_size=2, validation_fraction=0.2, partition=Dirichlet(alpha=1.0)),
        **changes,
    )


def test_statistics_count_what_is_there(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    data = build_data(rows_config(path), 3, 0)
    assert data.partition is not None
    distinct = len({json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()})
    clients = data.partition["clients"]
    assert data.partition["duplicates_removed"] == 60 - distinct == data.stats["duplicates_removed"] > 0
    assert sum(c["train_rows"] + c["validation_rows"] for c in clients) == distinct
    for c in clients:
        assert c["train_rows"] == sum(c["train_labels"].values()) and c["validation_rows"] >= 1
        assert set(c["train_labels"]) <= {"a", "b"}
        assert c["train_tokens"] == c["train_bytes"] + c["train_rows"]  # bytes, and one end-of-text each
    assert sum(c["train_tokens"] for c in clients) == data.stats["train_tokens"]
    total = sum(counts.numel() for k in range(3) for _, counts in data.own_validation_batches(k))
    assert total > 0
    years = dataclasses.replace(rows_config(path), source=JsonLines(glob=str(path), label_column="year"))
    found = build_data(dataclasses.replace(years, partition=NaturalId()), 3, 0).partition
    assert found is not None and [list(c["train_labels"]) for c in found["clients"]] == [["1999"], ["2000"], ["2001"]]


def test_natural_folders_are_by_folder(tmp_path: Path) -> None:
    """The reduction: the same training text at each client, for labels that are top folders."""
    for i in range(12):
        folder = tmp_path / "abc"[i % 3]
        folder.mkdir(exist_ok=True)
        (folder / f"{i}.txt").write_text(f"{i} " * 40, encoding="utf-8")
    base = DataConfig(source=TextFiles(glob=str(tmp_path / "*" / "*.txt")), seq_len=8, batch_size=2)
    folders = build_data(dataclasses.replace(base, sharding="by_folder", validation_fraction=0.3), 3, 0)
    natural = build_data(dataclasses.replace(base, partition=NaturalId(), validation_fraction=0.3), 3, 0)
    for a, b in zip((folders.partition or {})["clients"], (natural.partition or {})["clients"], strict=True):
        rows = ("train", "validation")
        assert sum(a[f"{r}_rows"] for r in rows) == sum(b[f"{r}_rows"] for r in rows) == 4
        assert set(a["train_labels"]) == set(b["train_labels"])


def test_streams_and_partitions_do_not_go_together(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    config = rows_config(path, source=HFDataset(name="json", data_files=str(path)))
    with pytest.raises(ConfigError, match=r"data.partition is .*None for a dataset that is streamed"):
        build_data(config, 2, 0)


def test_an_older_run_without_the_new_fields_resumes(tmp_path: Path) -> None:
    config = runs.small(runs.write_corpus(tmp_path), tmp_path)
    stored = to_dict(dataclasses.replace(config, islands=2))
    for name in ("partition", "chat_template", "drop_unanswered"):
        del stored["data"][name]
    (tmp_path / "config.json").write_text(json.dumps(stored), encoding="utf-8")
    check_resumable(config, 2)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, drop_unanswered=True))
    with pytest.raises(ConfigError, match=r"data.drop_unanswered"):
        check_resumable(other, 2)
    assert isinstance(config, RunConfig)


SOURCE = '''
class A:
    @property
    def size(self):
        """How many there are.

        Never negative.
        """

        # counted
        return len(self.rows)

    def one_line(self): "no lines of its own"; return 1

    def only(self):
        """A stub."""

async def wait(  # a comment
    seconds,
):
    r"""Wait \\d."""
    await sleep(seconds)

def outer():
    """Outer."""
    def inner():
        """Inner."""
        return """Not a docstring."""
    return inner

def plain():
    return 1
'''


def test_functions_are_cut_out_whole() -> None:
    found = {text.split("\n")[0]: answer for text, answer, _ in functions(SOURCE)}
    assert set(found) == {"How many there are.", "Wait \\d.", "Outer.", "Inner."}
    size = found["How many there are."]
    assert size == "@property\ndef size(self):\n    # counted\n    return len(self.rows)"
    for ask, answer in found.items():
        ast.parse(answer)
        assert f'"""{ask}"""' not in answer
    assert found["Inner."] == 'def inner():\n    return """Not a docstring."""'


def test_docstrings_of_installed_packages_are_natural_clients(tmp_path: Path) -> None:
    source = Docstrings(names=("rich", "markdown_it"), max_rows_each=30, max_chars=250)
    config = DataConfig(source=source, seq_len=400, batch_size=2, sharding="by_folder", cache_dir=tmp_path)
    corpus = source.read(tmp_path)
    assert source.read(tmp_path) == corpus
    files = [{d.file for d in side} for side in (corpus.documents, corpus.validation or [])]
    assert not files[0] & files[1] and all(files)
    for d in corpus.documents:
        ask, answer = d.messages
        assert len(ask.content) + len(answer.content) <= 250 and "def " in answer.content
        ast.parse(answer.content)
    data = build_data(config, 2, 0)
    assert [list(c["train_labels"]) for c in (data.partition or {})["clients"]] == [["markdown_it"], ["rich"]]
    inputs, targets = data.shard(0).next_batch()
    for row, learnt in zip(inputs.tolist(), targets.tolist(), strict=True):
        answer = bytes(t for t in learnt if 0 <= t < 256).decode()
        ast.parse(answer)
        assert answer in {d.messages[1].content for d in corpus.documents}
        assert answer in bytes(t for t in row if t < 256).decode()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Docstrings(names=()), "source.names"),
        (Docstrings(names=("no_such_package",)), "an installed package with a folder of its own"),
        (Docstrings(max_chars=5), "source.max_chars is 5"),
        (Docstrings(max_rows_each=1), "source.max_rows_each is 1"),
        (Docstrings(held_out=0.9), "source.held_out"),
        (Docstrings(names=("rich",), max_chars=25), "packages with documented functions in two files"),
    ],
)
def test_bad_docstring_sources(source: Docstrings, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        source.check()
        source.read(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)
