"""Checkpoints on disk: whole or not there, every damage seen, nothing executed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lowcomm import checkpoint
from lowcomm.checkpoint_pruning import prune
from lowcomm.types import CheckpointError
from tests.support import runs

ISLANDS = 2
SPECIAL = torch.tensor([float("nan"), float("inf"), -0.0, 1e-40, 3.4e38])


def parts(step: int) -> dict[str, checkpoint.Part]:
    tensors = {
        "model.a": torch.arange(60.0).view(3, 4, 5) + step,
        "special": SPECIAL,
        "half": torch.ones(7, dtype=torch.bfloat16),
        "count": torch.tensor(step),
        "empty": torch.zeros(0, 3),
        "column": torch.arange(12.0).view(3, 4).t(),
        "rng": torch.arange(16, dtype=torch.uint8),
    }
    values = {"step": step, "pending": [0], "note": "é\n", "nested": {"x": [1.5, None, True]}}
    return {"island": (tensors, values), "global": ({"weights.0": torch.full((5,), float(step))}, {"round": step})}


def save(root: Path, step: int, islands: int = ISLANDS) -> str:
    name = f"{step:06d}"
    for island in range(islands):
        wanted = parts(step)
        if island > 0:
            del wanted["global"]
        checkpoint.save(root, name, island, wanted, "session")
    return name


def assert_whole(root: Path, name: str, step: int) -> None:
    for island in range(ISLANDS):
        loaded = checkpoint.load(root, name, island)
        for part, (tensors, values) in parts(step).items():
            assert loaded[part][1] == values
            assert set(loaded[part][0]) == set(tensors)
            for key, tensor in tensors.items():
                got = loaded[part][0][key]
                assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
                assert got.reshape(-1).view(torch.uint8).equal(tensor.contiguous().reshape(-1).view(torch.uint8))


def files(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def test_round_trip(tmp_path: Path) -> None:
    assert_whole(tmp_path, save(tmp_path, 3), 3)
    assert checkpoint.verified(tmp_path, 1) == {"000003": "session"}


def test_order_of_names(tmp_path: Path) -> None:
    for name in ("000010", "000002-stop10", "000002-stop9", "000002", "1000000", "x", "000001.tmp", "00001"):
        (tmp_path / name).mkdir()
    expected = ["000002", "000002-stop9", "000002-stop10", "000010", "1000000"]
    assert checkpoint.names(tmp_path) == expected
    assert checkpoint.highest_stop(tmp_path) == 10
    assert checkpoint.names(tmp_path / "missing") == []


def test_only_safetensors_and_json(tmp_path: Path) -> None:
    save(tmp_path, 1)
    assert {p.suffix for p in files(tmp_path)} == {".safetensors", ".json"}
    for path in files(tmp_path):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    """A part named like torch's pickles, with the right hash in the manifest, is refused by its kind."""
    save(tmp_path, 1)
    directory = tmp_path / "000001" / "island-00000"
    torch.save({"a": torch.ones(1)}, directory / "island.pt")
    edit_manifest(directory, lambda m: m["files"].update({"island.pt": facts(directory / "island.pt")}))
    with pytest.raises(CheckpointError, match="lists other files"):
        checkpoint.load(tmp_path, "000001", 0)


def facts(path: Path) -> dict[str, object]:
    import hashlib

    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}


def edit_manifest(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again, as somebody with bad intentions would."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    edit(manifest)
    manifest["sha256"] = checkpoint.seal(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    save(root, 1)
    return root


def refused(root: Path, island: int) -> None:
    assert checkpoint.verified(root, island) == {}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(root, "000001", island)
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.randoms(use_true_random=False))
def test_every_single_bit_flip_is_seen(pristine: Path, where: random.Random) -> None:
    path = where.choice(files(pristine / "000001"))
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[where.randrange(len(data))] ^= 1 << where.randrange(8)
    path.write_bytes(flipped)
    try:
        refused(pristine, int(path.parent.name[-1]))
    finally:
        path.write_bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.randoms(use_true_random=False), more=st.booleans())
def test_wrong_length_is_seen(pristine: Path, where: random.Random, more: bool) -> None:
    """Truncated at any byte, or with bytes behind the end."""
    path = where.choice(files(pristine / "000001"))
    data = path.read_bytes()
    path.write_bytes(data + bytes(1 + where.randrange(9)) if more else data[: where.randrange(len(data))])
    try:
        refused(pristine, int(path.parent.name[-1]))
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("file", ["manifest.json", "island.safetensors", "island.json", "global.safetensors"])
def test_missing_file(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "000001" / "island-00000" / file).unlink()
    refused(tmp_path, 0)


def test_missing_global_part(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "000001" / "island-00000" / "global.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="no global part that is whole"):
        checkpoint.load(tmp_path, "000001", 1)


@pytest.mark.parametrize("name", ["000002", "000001-stop0"])
def test_moved_directory(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "000001").rename(tmp_path / name)
    with pytest.raises(CheckpointError, match="it was moved"):
        checkpoint.load(tmp_path, name, 0)
    assert checkpoint.verified(tmp_path, 0) == {}


def test_part_of_another_island(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.rmtree(tmp_path / "000001" / "island-00001")
    shutil.copytree(tmp_path / "000001" / "island-00000", tmp_path / "000001" / "island-00001")
    with pytest.raises(CheckpointError, match="it was moved"):
        checkpoint.load(tmp_path, "000001", 1)


@pytest.mark.parametrize("place", ["../outside.json", "/tmp/outside.json", "sub/../../outside.json", ".."])
def test_names_outside_the_directory(tmp_path: Path, place: str) -> None:
    save(tmp_path, 1)
    directory = tmp_path / "000001" / "island-00000"
    (tmp_path / "000001" / "outside.json").write_text("{}", encoding="utf-8")
    there = facts(tmp_path / "000001" / "outside.json")
    edit_manifest(directory, lambda m: m["files"].update({place: there}))
    with pytest.raises(CheckpointError, match=r"lists other files|outside itself"):
        checkpoint.load(tmp_path, "000001", 0)


def test_pair_of_files_outside_the_directory(tmp_path: Path) -> None:
    save(tmp_path, 1)
    directory = tmp_path / "000001" / "island-00000"
    for suffix in (".json", ".safetensors"):
        shutil.copy(directory / f"global{suffix}", tmp_path / "000001" / f"outside{suffix}")
    there = {f"../outside{s}": facts(directory / f"global{s}") for s in (".json", ".safetensors")}
    edit_manifest(directory, lambda m: m["files"].update(there))
    refused(tmp_path, 0)


def test_sealed_garbage_is_our_own_error(tmp_path: Path) -> None:
    """Files that match the manifest but are no safetensors or JSON."""
    for file in ("island.json", "island.safetensors"):
        root = tmp_path / file
        save(root, 1)
        directory = root / "000001" / "island-00000"
        (directory / file).write_bytes(b"\xff" * 64)
        garbage = facts(directory / file)
        edit_manifest(directory, lambda m, f=file, g=garbage: m["files"].update({f: g}))
        with pytest.raises(CheckpointError, match="is unreadable"):
            checkpoint.load(root, "000001", 0)


@pytest.mark.parametrize("link", ["000001", "000001/island-00000", "000001/island-00000/island.safetensors"])
def test_links_are_refused(tmp_path: Path, link: str) -> None:
    save(tmp_path / "root", 1)
    path = tmp_path / "root" / link
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is a link|not a plain file"):
        checkpoint.load(tmp_path / "root", "000001", 0)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"format": 2}',
        '{"format": 1, "checkpoint": "000001", "island": 0, "session": "s", "files": {}}',
        '{"format": 1, "checkpoint": "000001", "island": 0, "sha256": "", "session": "s", "files": []}',
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "[" * 100_000,
    ],
)
def test_malformed_manifest(tmp_path: Path, manifest: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "000001" / "island-00000" / "manifest.json").write_text(manifest, encoding="latin-1")
    refused(tmp_path, 0)


@pytest.mark.parametrize("files_entry", [[], None, "x", {"island.json": None}, {"island.json": {}}, {"": {}}])
def test_malformed_list_of_files(tmp_path: Path, files_entry: object) -> None:
    save(tmp_path, 1)
    edit_manifest(tmp_path / "000001" / "island-00000", lambda m: m.update(files=files_entry))
    refused(tmp_path, 0)


def test_keep(tmp_path: Path) -> None:
    """The newest complete ones stay; an incomplete one is neither counted nor, while it is the newest, removed."""
    for step in range(1, 6):
        save(tmp_path, step)
    save(tmp_path, 6, islands=1)
    prune(tmp_path, 2)
    assert checkpoint.names(tmp_path) == ["000004", "000005", "000006"]
    save(tmp_path, 7)
    prune(tmp_path, 1)
    assert checkpoint.names(tmp_path) == ["000007"]


def test_keep_does_not_count_mixed_sessions(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    checkpoint.save(tmp_path, "000002", 1, parts(2), "another session")
    prune(tmp_path, 1)
    assert checkpoint.names(tmp_path) == ["000001", "000002"]


def test_saved_again_after_an_incomplete_attempt(tmp_path: Path) -> None:
    """The part of a round that an earlier attempt left behind is replaced, never kept."""
    save(tmp_path, 1)
    wanted = {"island": ({"x": torch.ones(2)}, {"step": 1})}
    checkpoint.save(tmp_path, "000001", 1, wanted, "another session")
    assert checkpoint.verified(tmp_path, 1) == {"000001": "another session"}
    assert checkpoint.load(tmp_path, "000001", 1)["island"][0]["x"].tolist() == [1, 1]


def save_for_ever(root: str) -> int:
    for step in range(1, 100_000):
        save(Path(root), step)
        prune(Path(root), 2)
    return 0


def test_killed_while_saving(tmp_path: Path) -> None:
    """kill -9 at random moments: whatever is taken for whole is whole, and after the first save there is one."""
    where = random.Random(0)
    log = tmp_path / "log"
    for attempt in range(15):
        root = tmp_path / str(attempt)
        child = runs.start(save_for_ever, (str(root),), log)
        while not (root / "000001" / "island-00001").exists():
            assert child.is_alive(), log.read_text()
            time.sleep(0.002)
        time.sleep(where.random() * 0.1)
        child.kill()
        child.join()
        whole = [n for n in checkpoint.verified(root, 0) if n in checkpoint.verified(root, 1)]
        assert whole, files(root)
        for name in whole:
            assert_whole(root, name, int(name))
        partial = list(root.glob(".partial-*"))
        for island in range(ISLANDS):
            checkpoint.remove_partial(root, island)
        assert len(partial) <= 1 and not list(root.glob(".partial-*"))
        save(root, 200_000)
        assert_whole(root, "200000", 200_000)


def save_with_little_room(root: str) -> int:
    save(Path(root), 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
    try:
        save(Path(root), 2)
    except CheckpointError as error:
        print(error)
        return 7
    return 0


def test_no_room(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = runs.start(save_with_little_room, (str(tmp_path / "root"),), log)
    assert runs.wait(child, log) == 7, log.read_text()
    said = log.read_text().strip()
    assert "\n" not in said
    assert "could not be written" in said and "Earlier checkpoints are intact" in said and "too large" in said
    assert_whole(tmp_path / "root", "000001", 1)
    assert not list((tmp_path / "root").glob(".partial-*"))


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"could not be written to .*(Not a directory|exists)"):
        save(tmp_path / "checkpoints", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; a read-only mount covers it")
def test_read_only_directory(tmp_path: Path) -> None:
    save(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="could not be written"):
            save(tmp_path, 2)
        assert_whole(tmp_path, "000001", 1)
    finally:
        tmp_path.chmod(0o700)
