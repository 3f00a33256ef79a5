"""Injection points: a fault comes once, to its island, from its round on; and what a store in trouble answers."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from lowcomm.chaos.inject import Injector, flipped
from lowcomm.chaos.plan import AWAY, Fault
from lowcomm.chaos.record import Recorder
from lowcomm.chaos.trouble import Trouble
from lowcomm.store.directory import DirectoryObjects
from lowcomm.store.memory import MemoryObjects
from lowcomm.store.objects import Answer, Cause, StoreDownError, StoreError

KEY = "deltas/000000000000/" + "a" * 32 + "-000000000001"


def injector(tmp_path: Path, island: int, came: list[int], *faults: Fault) -> Injector:
    return Injector(
        faults, island, tmp_path, recorder=Recorder(tmp_path / f"{island}.record"),
        act=lambda number, fault, process: came.append(number), trouble=Trouble(tmp_path, 0),
    )  # fmt: skip


def test_a_fault_comes_once_whoever_comes_to_it(tmp_path: Path) -> None:
    came: list[int] = []
    fault = Fault(fault="kill", phase="encode", round=3, island=None)
    both = [injector(tmp_path, k, came, fault) for k in range(2)]
    for one in both:
        one.at("encode")
    assert came == [], "the round has not come"
    for one in both:
        one.version = 3
        one.at("step")
        one.at("encode")
    assert came == [0]
    event = json.loads(both[0].place(0).read_text(encoding="utf-8"))
    assert (event["island"], event["version"]) == (0, 3)


def test_a_fault_waits_for_its_island_unless_that_is_away(tmp_path: Path) -> None:
    came: list[int] = []
    fault = Fault(fault="kill", phase="step", round=3, island=1)
    other = injector(tmp_path, 0, came, fault)
    other.version = 3 + AWAY - 1
    other.at("step")
    assert came == []
    other.version += 1
    other.at("step")
    assert came == [0]


def test_an_island_is_made_to_heal_once_for_a_fault_that_comes_then(tmp_path: Path) -> None:
    one = injector(tmp_path, 1, [], Fault(fault="stop", phase="heal", round=3, island=1))
    assert not one.heals()
    one.version = 3
    assert one.heals() and not one.heals()


def test_damage_is_undone_by_doing_it_again() -> None:
    data = bytes(range(64))
    assert flipped(data) != data and flipped(flipped(data)) == data


def asked(trouble: Trouble, objects: MemoryObjects, *, puts: bool) -> object:
    def put() -> Answer:
        return objects.put_new(KEY, b"data")

    return trouble.through(objects, "it", 4, puts, put if puts else lambda: objects.get(KEY))


def test_errors_leave_it_open_whether_a_creation_landed(tmp_path: Path) -> None:
    trouble, landed, failed = Trouble(tmp_path, 1), 0, 0
    trouble.begin_for_all("errors", 60.0)
    for _ in range(40):
        objects = MemoryObjects()
        try:
            assert asked(trouble, objects, puts=True) is Answer.UNKNOWN
            landed += 1
            assert objects.get(KEY) == b"data"
        except StoreError:
            failed += 1
            assert objects.get(KEY) is None
        assert objects.trouble is not None
    assert landed > 5 and failed > 5
    with pytest.raises(StoreError):
        asked(Trouble(tmp_path, 2), MemoryObjects(), puts=False)


def test_a_full_disk_is_read_and_not_written(tmp_path: Path) -> None:
    trouble, objects = Trouble(tmp_path, 1), MemoryObjects()
    trouble.begin_for_all("full", 60.0)
    assert asked(trouble, objects, puts=False) is None
    with pytest.raises(StoreDownError, match="store full") as caught:
        asked(trouble, objects, puts=True)
    assert caught.value.cause is Cause.FULL


def test_a_cut_link_hangs_and_fails_and_is_back(tmp_path: Path) -> None:
    trouble, objects = Trouble(tmp_path, 1), MemoryObjects()
    trouble.begin("cut", 0.05)
    start = time.monotonic()
    with pytest.raises(StoreDownError):
        asked(trouble, objects, puts=True)
    assert time.monotonic() - start >= 0.04
    assert asked(trouble, objects, puts=True) is Answer.CREATED
    assert Trouble(tmp_path, 2).now() is None, "the others were not cut off"


def test_nothing_is_wrapped_in_a_process_that_nobody_prepared() -> None:
    for name in ("put_new", "get", "list", "_link"):
        assert getattr(DirectoryObjects, name).__module__ == "lowcomm.store.directory"
