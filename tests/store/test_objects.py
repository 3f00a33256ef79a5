"""Every store keeps one promise: a key is created once, whole; what is there is read, listed and deleted."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore

from lowcomm.store.create import create, create_own_once
from lowcomm.store.directory import DirectoryObjects
from lowcomm.store.faulty import FaultyHeap
from lowcomm.store.memory import Heap, MemoryObjects
from lowcomm.store.objects import Answer, Objects, StoreDownError, StoreRefusedError, check_key, check_prefix
from lowcomm.store.open import open_objects
from lowcomm.store.parts import Download, Part, Upload, cut
from lowcomm.store.probe import RACES, WRITERS, check_access, probe
from lowcomm.store.remote import RemoteObjects
from lowcomm.types import PayloadError
from tests.support.s3 import BUCKET, Bucket, bucket

Make = Callable[[], Objects]
"""An empty store."""
KEYS = [f"{a}/{b}" for a in ("commits", "deltas/000000000001", "deltas/000000000002") for b in ("a", "a.p00", "b-1")]
KEYS += ["run.json", "deltas/000000000001.x", "deltas-more"]
PREFIXES = ("", "commits/", "deltas/", "deltas/000000000001/", "snapshots/")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    with bucket(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(scope="module", params=["directory", "memory", "obstore memory", "obstore local", "localbucket"])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Make:
    def remote_local() -> Objects:
        client = LocalStore(tmp_path_factory.mktemp("local"))
        return RemoteObjects(lambda options: client, where="local")

    def remote_memory() -> Objects:
        client = MemoryStore()
        return RemoteObjects(lambda options: client, where="memory")

    if request.param == "localbucket":
        request.getfixturevalue("server")
    numbers = iter(range(10**6))
    return {
        "directory": lambda: DirectoryObjects(tmp_path_factory.mktemp("run")),
        "memory": MemoryObjects,
        "obstore memory": remote_memory,
        "obstore local": remote_local,
        "localbucket": lambda: open_objects(f"s3://{BUCKET}/runs/{next(numbers)}"),
    }[request.param]


@settings(max_examples=5)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "get", "range", "list", "delete"]), st.sampled_from(KEYS), st.integers(0, 9)),
        min_size=20,
        max_size=40,
    )
)
def test_a_store_is_a_dictionary_whose_keys_are_written_once(make: Make, steps: list[tuple[str, str, int]]) -> None:
    objects, held = make(), dict[str, bytes]()
    for what, key, n in steps:
        if what == "put":
            answer = objects.put_new(key, bytes([n]) * n)
            assert answer is (Answer.EXISTS if key in held else Answer.CREATED)
            held.setdefault(key, bytes([n]) * n)
        elif what == "get":
            assert objects.get(key) == held.get(key)
        elif what == "range":
            expected = held[key][n // 2 : n // 2 + 3] if key in held else None
            assert objects.get_range(key, n // 2, 3) == expected
        elif what == "delete":
            objects.delete([key, KEYS[n]])
            held.pop(key, None)
            held.pop(KEYS[n], None)
        else:
            prefix = PREFIXES[n % len(PREFIXES)]
            after = key if key.startswith(prefix) else None
            found = objects.list(prefix, after)
            keys = sorted(k for k in held if k.startswith(prefix) and (after is None or k > after))
            assert [(one.key, one.size) for one in found] == [(k, len(held[k])) for k in keys]
    assert objects.trouble is None


def test_of_many_creators_one_wins_and_all_read_its_bytes(make: Make) -> None:
    objects = make()
    with ThreadPoolExecutor(8) as threads:
        for race in range(5):
            answers = list(
                threads.map(lambda n, key=f"commits/{race}": objects.put_new(key, bytes([n]) * 999), range(8))
            )
            won = [n for n, answer in enumerate(answers) if answer is Answer.CREATED]
            assert len(won) == 1, answers
            assert objects.get(f"commits/{race}") == bytes(won) * 999


def test_what_is_counted_is_what_was_asked(make: Make) -> None:
    objects = make()
    before = objects.counts.as_json()  # opening may have looked
    objects.put_new("a/b", b"12345")
    objects.put_new("a/b", b"123")
    objects.get("a/b")
    objects.get("a/c")
    objects.get_range("a/b", 2, 2)
    objects.get_range("a/b", 5, 2)
    objects.list("a/")
    objects.delete(["a/b", "a/c"])
    after = objects.counts.as_json()
    spent = {name: after[name] - before[name] for name in after}
    assert spent == {"puts": 2, "gets": 4, "lists": 1, "deletes": 2, "up_bytes": 8, "down_bytes": 7}
    assert objects.counts.requests == sum(after[name] for name in ("puts", "gets", "lists", "deletes"))


def test_the_server_saw_each_request_that_is_counted_and_no_other(server: Bucket) -> None:
    seen = len(server.requests())
    objects = open_objects(f"s3://{BUCKET}/counted")
    probe(objects, "token")
    asked = [line.split(" ")[0] for line in server.requests()[seen:]]
    listed = [line for line in server.requests()[seen:] if "list-type=2" in line]
    counts = objects.counts
    assert len(listed) == counts.lists
    assert asked.count("PUT") == counts.puts == 2 + RACES * (WRITERS + 1)
    assert asked.count("GET") - len(listed) == counts.gets
    assert asked.count("DELETE") == counts.deletes == 1 + RACES
    assert len(asked) == counts.requests
    assert objects.list("") == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".tmp/x", "a/.b", "a b", "ä", "a\n", "a" * 129]
)
def test_a_key_that_leaves_the_run_is_refused(make: Make, key: str) -> None:
    objects = make()
    for ask in (lambda: objects.put_new(key, b""), lambda: objects.get(key), lambda: objects.delete([key])):
        with pytest.raises(ValueError, match="no key"):
            ask()
    with pytest.raises(ValueError, match="no key"):
        check_key("/".join("abcdefghi"))
    with pytest.raises(ValueError, match="no prefix"):
        objects.list("commits")
    with pytest.raises(ValueError, match="no key under"):
        check_prefix("commits/", "deltas/1")
    with pytest.raises(ValueError, match="no range"):
        objects.get_range("a", 0, 0)


def test_a_body_in_parts_comes_back_and_counts_once_its_last_object_is_there(make: Make) -> None:
    objects, body = make(), random.Random(0).randbytes(1000)
    parts = cut("deltas/1/x-1", body, 300)
    assert [part.key[-4:] for part, _ in parts] == [".p00", ".p01", ".p02", ".p03"]
    upload = Upload([*((part.key, piece) for part, piece in parts), ("deltas/1/x-1", b"list of parts")])
    download = Download([part for part, _ in parts], most_bytes=1000)
    assert not download.step(objects) and download.body is None
    while not upload.done:
        assert objects.get("deltas/1/x-1") is None
        assert upload.step(objects)
    while download.body is None:
        assert download.step(objects)
    assert download.body == body
    assert Download([], most_bytes=0).body == b"" and cut("k", b"", 300) == []


def test_parts_that_are_announced_wrongly_are_refused_before_or_after_reading() -> None:
    objects = MemoryObjects()
    objects.put_new("k.p00", b"abcd")
    (part, _), *_ = cut("k", b"abcd", 4)
    for parts, most in (
        ([part], 3),
        ([Part(key="k.p00", size=-1, sha256="")], 9),
        ([Part(key="k", size=0, sha256="")], 9),
    ):
        with pytest.raises(PayloadError, match="announced"):
            Download(parts, most_bytes=most)
    for wrong in (Part(key="k.p00", size=3, sha256=part.sha256), Part(key="k.p00", size=4, sha256="0" * 64)):
        with pytest.raises(PayloadError, match="is not the part"):
            Download([wrong], most_bytes=9).step(objects)


def test_the_probe_passes_what_keeps_its_promise_and_leaves_nothing(make: Make) -> None:
    objects = make()
    if objects.where.startswith("s3:"):
        pytest.skip("the test of the server's requests does it")
    proof = probe(objects, "token")
    check_access(objects, "token")
    assert proof.as_json() | {"read_s": 0, "list_s": 0} == {
        "races": 20, "writers": 8, "read_s": 0, "list_s": 0, "deletes": True,
    }  # fmt: skip
    assert objects.list("") == []


class Overwriting(MemoryObjects):
    """A store that ignores the condition of a create."""

    def put_new(self, key: str, data: bytes) -> Answer:
        self.heap.objects[key] = data
        return self.answer

    answer = Answer.CREATED


class Racing(Heap):
    """A store that looks first and creates then, not atomically: every other create is told that it won."""

    told = 0

    def create(self, key: str, data: bytes) -> bool:
        created = super().create(key, data)
        self.told += "race" in key
        return created or ("race" in key and self.told % 2 == 0)


@pytest.mark.parametrize(
    ("objects", "failing"),
    [
        (Overwriting(), "second create of 'probe/token/twice' was not refused"),
        (MemoryObjects(Racing()), "creates of 'probe/token/race-00' at once were told that they won"),
    ],
)
def test_the_probe_refuses_what_does_not(objects: Objects, failing: str) -> None:
    with pytest.raises(StoreRefusedError, match=failing) as caught:
        probe(objects, "token")
    assert "\n" not in str(caught.value) and "Fix: " in str(caught.value)


def test_the_probe_refuses_a_store_that_says_exists_and_overwrites() -> None:
    objects = Overwriting()
    objects.answer = Answer.EXISTS
    with pytest.raises(StoreRefusedError, match="replaced its bytes"):
        probe(objects, "token")


@pytest.mark.parametrize("seed", range(20))
def test_with_lost_answers_conflicts_and_late_requests_all_read_one_history(seed: int) -> None:
    heap = FaultyHeap(random.Random(seed))
    writers = [MemoryObjects(heap) for _ in range(4)]
    for version in range(20):
        key = f"commits/{version}"
        held = {create(objects, key, bytes([n]), lambda tries: heap.tick()) for n, objects in enumerate(writers)}
        assert len(held) == 1
        for n, objects in enumerate(writers):
            while not create_own_once(objects, f"deltas/{version}/{n}", b"mine"):
                heap.tick()
    while heap.late:
        heap.tick()
    heap.chaos = False
    assert all(heap.objects[f"deltas/{version}/{n}"] == b"mine" for version in range(20) for n in range(4))


def test_a_heap_that_is_down_says_so_and_one_that_is_broken_overwrites() -> None:
    heap = FaultyHeap(random.Random(0), exact=False)
    heap.chaos = False
    objects = MemoryObjects(heap)
    assert objects.put_new("a", b"1") is objects.put_new("a", b"2") is Answer.CREATED
    assert objects.get("a") == b"2"
    heap.down = True
    with pytest.raises(StoreDownError, match="store down"):
        objects.get("a")
