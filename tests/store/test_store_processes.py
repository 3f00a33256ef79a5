"""Members are processes: whatever dies, freezes or writes nonsense, the run ends with one history."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lowcomm.store import keys
from lowcomm.store.open import open_objects
from tests.support import store_crew
from tests.support.s3 import BUCKET, bucket

ROOT = Path(__file__).resolve().parents[2]
PHASES = [
    "before put joins/ 1", "after put joins/ 1", "after get commits/ 1", "after get deltas/ 2", "before put deltas/ 2",
    "after put deltas/ 2", "before put commits/ 1", "after put commits/ 1", "after put snapshots/ 1",
]  # fmt: skip


class Crew:
    """Processes of one run."""

    def __init__(self, url: str, plans: list[dict[str, Any]], results: Path) -> None:
        results.mkdir()
        self.results, self.plans = results, plans
        self.url = url
        command = [sys.executable, "-m", "tests.support.store_crew", url, json.dumps(plans), str(results)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def end(self) -> list[dict[str, Any]]:
        """What each process that lived to the end has; one history, and each block exactly once, in all of them."""
        _, said = self.process.communicate(timeout=2 * store_crew.LIMIT_S)
        assert self.process.returncode == 0, said
        found = [json.loads(path.read_text()) for path in sorted(self.results.glob("*.json"))]
        assert len(found) == len(self.plans), said
        assert {one["phase"] for one in found} == {"done"}
        assert {one["trained"] for one in found} == {one["tokens"] for one in found} == {store_crew.BLOCKS}
        assert len({one["digest"] for one in found}) == 1
        return found


def crew(tmp_path: Path, plans: list[dict[str, Any]], url: str | None = None) -> Crew:
    url = str(tmp_path / "run") if url is None else url
    store_crew.create(url)
    return Crew(url, plans, tmp_path / "results")


def members(*first: dict[str, Any]) -> list[dict[str, Any]]:
    return [*first, *({"name": f"calm-{n}"} for n in range(3 - len(first)))]


def test_one_is_killed_one_freezes_one_sends_damaged_bytes_and_the_run_ends_the_same_everywhere(tmp_path: Path) -> None:
    """Nonsense, a commit that is too large and one cut short are no-ops; two of one name are two members."""
    url = str(tmp_path / "run")
    store_crew.create(url)
    objects = open_objects(url)
    for version, nonsense in ((2, b"nonsense"), (3, b"[" * (3 << 20)), (4, b'{"v":4')):
        objects.put_new(keys.commit(version), nonsense)
    plans = [
        {"name": "same", "at": "after put deltas/ 2", "what": "die"},
        {"name": "same", "at": "after put deltas/ 1", "what": "freeze"},
        {"name": "damaged", "at": "before put deltas/ 1", "what": "truncate"},
    ]
    found = Crew(url, plans, tmp_path / "results").end()
    assert sorted(one["name"] for one in found) == ["damaged", "same", "same"]
    assert objects.get(keys.commit(2)) == b"nonsense"


@pytest.mark.long
@pytest.mark.parametrize("what", ["truncate", "enlarge"])
def test_a_damaged_payload_costs_its_author_a_heal_and_nothing_else(tmp_path: Path, what: str) -> None:
    damaged = {"name": "damaged", "at": "before put deltas/ 1", "what": what}
    for one in crew(tmp_path, members(damaged)).end():
        assert (one["name"] == "damaged") == (len(one["whys"]) > 1), one["whys"]


@pytest.mark.long
def test_a_server_that_is_gone_for_a_while_ends_nobody(tmp_path: Path) -> None:
    with bucket(tmp_path / "s3") as server:
        running = crew(tmp_path, members(), f"s3://{BUCKET}/run")
        objects = open_objects(running.url)
        while len(objects.list(keys.COMMITS)) < 3:
            time.sleep(0.05)
        server.stop()
        while not (running.results / "missed").exists():
            assert running.process.poll() is None
            time.sleep(0.05)
        server.start()
        found = running.end()
    assert any("store down" in one["troubles"] for one in found)


@pytest.mark.long
@pytest.mark.parametrize("what", ["die", "freeze"])
@pytest.mark.parametrize("phase", PHASES)
def test_each_phase(tmp_path: Path, phase: str, what: str) -> None:
    crew(tmp_path, members({"name": "hit", "at": phase, "what": what})).end()


@pytest.mark.long
@pytest.mark.parametrize("phase", PHASES)
def test_all_die_in_one_phase(tmp_path: Path, phase: str) -> None:
    crew(tmp_path, [{"name": f"hit-{n}", "at": phase, "what": "die"} for n in range(3)]).end()
