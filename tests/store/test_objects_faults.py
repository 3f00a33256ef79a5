"""What fails in a store is named by its cause, with the fix, and nothing is half there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import S3Store

from lowcomm.store import directory
from lowcomm.store.create import create
from lowcomm.store.directory import DirectoryObjects
from lowcomm.store.objects import Answer, Cause, Objects, StoreDownError, StoreError, StoreRefusedError
from lowcomm.store.open import open_objects, parse
from lowcomm.store.probe import check_access
from lowcomm.store.remote import RemoteObjects
from lowcomm.types import ConfigError
from tests.support.s3 import BUCKET, Bucket, Scripted, bucket, environment, in_environment, scripted

REFUSALS = [
    (403, "AccessDenied", Cause.DENIED),
    (403, "RequestTimeTooSkewed", Cause.CLOCK),
    (403, "InvalidAccessKeyId", Cause.CREDENTIALS),
    (403, "SignatureDoesNotMatch", Cause.CREDENTIALS),
    (400, "ExpiredToken", Cause.CREDENTIALS),
    (401, "", Cause.CREDENTIALS),
    (404, "NoSuchBucket", Cause.NO_BUCKET),
    (301, "PermanentRedirect", Cause.REGION),
    (400, "AuthorizationHeaderMalformed", Cause.REGION),
    (501, "NotImplemented", Cause.UNFIT),
]
TROUBLES = [
    (503, "SlowDown", Cause.SLOW),
    (429, "TooManyRequests", Cause.SLOW),
    (500, "InternalError", Cause.DOWN),
    (503, "ServiceUnavailable", Cause.DOWN),
    (400, "RequestTimeout", Cause.SLOW),
]
KILLED_WRITERS = """
import itertools, os, signal, sys
from pathlib import Path
from lowcomm.store.directory import DirectoryObjects

def write(end):
    objects = DirectoryObjects(Path(sys.argv[1]))
    for n in itertools.count():
        objects.put_new(f"deltas/{n}/{os.getpid()}", bytes([n % 256]) * (1 << 16))
        os.write(end, b".")

for kill in range(20):
    here, end = os.pipe()
    if (child := os.fork()) == 0:
        write(end)
    os.read(here, 1)
    for _ in range(kill * 500):
        pass  # another moment each time
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def remote(port: int, time_out_s: float = 30.0) -> RemoteObjects:
    """A client of a server on this machine that gives up after so long."""

    def build(options: object) -> S3Store:
        return S3Store(BUCKET, client_options={"allow_http": True, **options}, retry_config={"max_retries": 0})  # pyright: ignore

    return RemoteObjects(build, where=f"s3://{BUCKET}", time_out_s=time_out_s)


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


def requests_of(objects: Objects) -> list[tuple[str, object]]:
    return [
        ("get 'commits/1'", lambda: objects.get("commits/1")),
        ("get 'commits/1'", lambda: objects.get_range("commits/1", 0, 9)),
        ("list 'commits/'", lambda: objects.list("commits/")),
        ("delete 'commits/1'", lambda: objects.delete(["commits/1"])),
        ("put 'commits/1'", lambda: objects.put_new("commits/1", b"bytes")),
    ]


@pytest.mark.parametrize(("status", "code", "cause"), REFUSALS)
def test_a_refusal_names_cause_and_fix_on_one_line(server: Scripted, status: int, code: str, cause: Cause) -> None:
    server.status, server.code = status, code
    for what, ask in requests_of(remote(server.port)):
        with pytest.raises(StoreRefusedError) as caught:
            ask()
        assert caught.value.cause is cause
        message = str(caught.value)
        assert message.startswith(f"store s3://{BUCKET}: {what}: {cause.value} (") and "Fix: " in message
        assert "\n" not in message and "nothing" not in message.split("Fix")[0]  # the secret key of the test
    with pytest.raises(ConfigError, match=cause.value):
        open_objects(f"s3://{BUCKET}/run")


@pytest.mark.parametrize(("status", "code", "cause"), TROUBLES)
def test_trouble_passes_and_a_create_in_it_is_unknown(server: Scripted, status: int, code: str, cause: Cause) -> None:
    server.status, server.code = status, code
    objects = remote(server.port)
    asked = len(server.asked)
    for what, ask in requests_of(objects):
        if what.startswith("put"):
            assert ask() is Answer.UNKNOWN
        else:
            with pytest.raises(StoreDownError, match=cause.value):
                ask()
        assert objects.trouble is not None and objects.trouble.cause is cause
    assert len(server.asked) - asked == objects.counts.requests == 5  # asked once each
    with pytest.raises(ConfigError, match=cause.value):
        open_objects(f"s3://{BUCKET}/run")
    assert len(server.asked) - asked == 6
    server.status, server.code = 404, "NoSuchKey"
    assert objects.get("commits/1") is None and objects.trouble is None


def test_a_conflict_of_which_nothing_landed_is_put_again(server: Scripted) -> None:
    server.status, server.code = 409, "ConditionalRequestConflict"
    objects = remote(server.port)
    assert objects.put_new("commits/1", b"bytes") is Answer.EXISTS
    server.status, server.code = 404, "NoSuchKey"
    assert objects.get("commits/1") is None


def test_a_server_that_does_not_answer_is_slow_and_one_that_is_gone_is_down() -> None:
    with scripted() as silent:
        silent.status = None
        objects = remote(silent.port, time_out_s=0.2)
        assert objects.put_new("commits/1", b"bytes") is Answer.UNKNOWN
        assert objects.trouble is not None and objects.trouble.cause is Cause.SLOW
        with pytest.raises(StoreDownError, match=r"slow \(Timeout\)"):
            objects.get("commits/1")
    with in_environment(environment(silent.port)):
        for _, ask in requests_of(remote(silent.port)):  # nothing can have landed: no "unknown"
            with pytest.raises(StoreDownError, match=r"store down \(Connect\)"):
                ask()


def test_a_creation_goes_on_when_its_server_was_killed_in_it(tmp_path: Path) -> None:
    with bucket(tmp_path) as running:
        objects = open_objects(f"s3://{BUCKET}/run")
        running.stop()
        with pytest.raises(StoreDownError):
            create(objects, "commits/1", b"mine", lambda tries: None)
        running.start()
        assert create(objects, "commits/1", b"mine", lambda tries: None) == b"mine"
        running.stop()
        running.start()
        assert objects.get("commits/1") == b"mine" and objects.put_new("commits/1", b"other") is Answer.EXISTS


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/run", "use one of these schemes"),
        ("s3:/bucket/run", "write one of these, with ./ before"),
        ("file:/bucket/run", "write one of these, with ./ before"),
        ("s3://", "name the bucket"),
        ("s3:///run", "name the bucket"),
        ("s3://B/run", "name the bucket"),
        ("s3://key:secret@bucket/run", "put credentials into the environment"),
        ("s3://bucket/run?sig=secret", "put credentials into the environment"),
        ("s3://bucket:9000/run", "put credentials into the environment"),
        ("s3://bucket/../run", "rename it"),
        ("s3://bucket/a//b", "rename it"),
        ("az://con tainer/run", "name the bucket"),
        ("s3://bucket--use1-az4--x-s3/run", "use a general purpose bucket"),
        ("", "name a directory or a bucket"),
        ("  ", "name a directory or a bucket"),
        ("/nowhere/at/all", "there is no such directory"),
    ],
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_objects(url)
    message = str(caught.value)
    assert said in message and "\n" not in message and "secret" not in message and "Fix: " in message


def test_addresses_are_taken_apart() -> None:
    assert parse("s3://bucket/runs/one/") == ("s3", "bucket", "runs/one")
    assert parse("gs://bucket") == ("gs", "bucket", "")
    assert parse("az://container/run") == ("az", "container", "run")


def test_plain_http_stays_on_this_machine_unless_it_is_asked_for() -> None:
    with in_environment({"AWS_ENDPOINT_URL": "http://user:secret@198.51.100.1:9000"}):
        with pytest.raises(ConfigError, match="AWS_ALLOW_HTTP=true on a private network") as caught:
            open_objects("s3://bucket/run")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["gs://bucket/run", "az://container/run"])
def test_credentials_that_are_missing_are_said(url: str, tmp_path: Path) -> None:
    """Neither cloud is asked: GCS reads a file that is not there, Azure has no account."""
    with in_environment({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}):
        with pytest.raises(ConfigError, match="credentials missing or expired"):
            open_objects(url)


def test_a_missing_extra_names_its_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'lowcomm\[store\]'"):
        open_objects("s3://bucket/run")


def test_a_directory_needs_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert open_objects(str(tmp_path / "new" / "run"), make=True).put_new("a", b"1") is Answer.CREATED
    assert open_objects(f"file://{tmp_path}/new/run").get("a") == b"1"


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        objects = DirectoryObjects.make(tmp_path / "runs" / "one")
        objects.put_new("deltas/1/x", b"1")
    finally:
        os.umask(before)
    for path in (tmp_path / "runs").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert objects.get("deltas/1/x") == b"1"
    assert not list((tmp_path / "runs" / "one" / ".tmp").iterdir())


@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        (errno.ENOSPC, StoreDownError, Cause.FULL),
        (errno.EDQUOT, StoreDownError, Cause.FULL),
        (errno.EACCES, StoreRefusedError, Cause.DENIED),
        (errno.EROFS, StoreRefusedError, Cause.DENIED),
        (errno.EIO, StoreDownError, Cause.DOWN),
    ],
)
def test_a_write_that_fails_leaves_nothing_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[StoreError], cause: Cause
) -> None:
    objects = DirectoryObjects(tmp_path)

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(kind, match=f"{cause.value}.*Fix: "):
            objects.put_new("a", b"1")
    assert objects.list("") == [] and not list((tmp_path / ".tmp").iterdir())
    assert objects.put_new("a", b"1") is Answer.CREATED


@pytest.mark.parametrize("code", directory.NO_LINKS)
def test_a_file_system_without_hard_links_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(path: Path, other: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", fail)
    objects = DirectoryObjects(tmp_path)
    with pytest.raises(StoreRefusedError, match=r"no hard links here.*use a file system with hard links"):
        check_access(objects, "token")
    assert not list((tmp_path / ".tmp").iterdir())


def test_a_directory_that_was_replaced_or_unmounted_is_down(tmp_path: Path) -> None:
    objects = DirectoryObjects.make(tmp_path / "run")
    objects.put_new("commits/0", b"1")
    (tmp_path / "run").rename(tmp_path / "away")
    for again in (False, True):
        if again:
            (tmp_path / "run").mkdir()  # a mount point without its mount
        for ask in (
            lambda: objects.put_new("commits/1", b""),
            lambda: objects.get("commits/0"),
            lambda: objects.list(""),
        ):
            with pytest.raises(StoreDownError, match="store down"):
                ask()
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_that_vanishes_before_the_link_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another member deletes the last payload of a version, and its folder, at the worst time."""
    objects, link, vanished = DirectoryObjects(tmp_path), Path.hardlink_to, list[Path]()

    def vanish(path: Path, other: Path) -> None:
        if not vanished:
            vanished.append(path.parent)
            path.parent.rmdir()
        link(path, other)

    monkeypatch.setattr(Path, "hardlink_to", vanish)
    assert objects.put_new("deltas/1/x", b"1") is Answer.CREATED and vanished
    objects.delete(["deltas/1/x"])
    assert [path.name for path in tmp_path.iterdir()] == [".tmp"]


def test_a_file_that_others_put_there_is_no_object(tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path)
    objects.put_new("commits/1", b"1")
    (tmp_path / "commits" / ".nfs0001").write_bytes(b"")
    (tmp_path / "commits" / "a b").write_bytes(b"")
    (tmp_path / "commits" / "link").symlink_to("/etc/passwd")
    (tmp_path / "up").symlink_to(tmp_path)
    assert [one.key for one in objects.list("")] == ["commits/1"]
    assert objects.get("commits") is None and objects.get("commits/1/x") is None


def test_left_over_files_go_after_a_day(tmp_path: Path) -> None:
    folder = tmp_path / ".tmp"
    folder.mkdir()
    for name, age_s in (("old", directory.LEFT_OVER_S + 60), ("young", 60)):
        (folder / name).write_bytes(b"")
        changed = (folder / name).stat().st_mtime - age_s
        os.utime(folder / name, (changed, changed))
    DirectoryObjects(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["young"]


@pytest.mark.long
def test_writers_that_are_killed_leave_whole_objects_only(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_WRITERS, str(tmp_path)], check=True, cwd=Path.cwd())
    objects = DirectoryObjects(tmp_path)
    found = objects.list("deltas/")
    assert len(found) >= 20
    for one in found:
        number = int(one.key.split("/")[1])
        assert one.size == 1 << 16 and objects.get(one.key) == bytes([number % 256]) * (1 << 16)


@pytest.mark.long
def test_a_frozen_server_is_slow_and_what_it_had_taken_may_land_later(tmp_path: Path) -> None:
    running: Bucket
    with bucket(tmp_path) as running:
        objects = remote(running.port, time_out_s=0.5)
        objects.put_new("commits/1", b"1")
        running.process.send_signal(signal.SIGSTOP)
        assert objects.put_new("commits/2", b"late") is Answer.UNKNOWN
        running.process.send_signal(signal.SIGCONT)
        assert create(objects, "commits/2", b"mine", lambda tries: None) in (b"late", b"mine")
        first = objects.get("commits/2")
        assert create(objects, "commits/2", b"other", lambda tries: None) == first
