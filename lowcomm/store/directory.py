"""A directory as a store, on a local disk or NFS: no server, nothing to configure.

Creating: the bytes go to a file in `.tmp`, that is synced and gets the key's name as a second, hard link, which is
refused if the name exists; then the folder is synced. So a key appears whole and durable, or not at all, also over NFS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from lowcomm.private_files import DIRECTORY_MODE, FILE_MODE, make_directory
from lowcomm.store.objects import (
    KEY,
    Answer,
    Cause,
    Listed,
    Objects,
    StoreDownError,
    StoreError,
    StoreRefusedError,
    check_key,
    check_prefix,
    check_range,
)

LEFT_OVER_S = 86_400
"""Age after which a file in `.tmp` belongs to a process that died."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)


class DirectoryObjects(Objects):
    """Files of mode 0600 in folders of mode 0700 below a directory that exists."""

    def __init__(self, root: Path) -> None:
        """Raises StoreError if there is no such directory."""
        super().__init__()
        self.root = root.absolute()
        self.where = str(self.root)
        self.poll_first_s, self.poll_most_s = 0.02, 1.0
        try:
            found = self.root.stat()
        except OSError as error:
            raise self._failure("directory", error) from error
        self._root_is = (found.st_dev, found.st_ino)
        self._clear_left_over()

    @classmethod
    def make(cls, root: Path) -> DirectoryObjects:
        """The store in a directory that is made if it is missing. Raises StoreError."""
        try:
            make_directory(root)
        except OSError as error:
            raise failure(str(root), "directory", error) from error
        return cls(root)

    def put_new(self, key: str, data: bytes) -> Answer:
        path = self.root / check_key(key)
        self.counts.add(puts=1, up_bytes=len(data))
        try:
            self._check_root()
            if path.exists():
                return self._fine(Answer.EXISTS)
            written = self._write(data)
        except OSError as error:
            raise self._failure(key, error) from error
        try:
            return self._link(written, path)
        except OSError as error:
            failed = self._failure(key, error, linking=True)
            if isinstance(failed, StoreRefusedError):
                raise failed from error
            return Answer.UNKNOWN
        finally:
            with contextlib.suppress(OSError):
                written.unlink()

    def get(self, key: str) -> bytes | None:
        return self._read(key, 0, None)

    def get_range(self, key: str, start: int, size: int) -> bytes | None:
        check_range(start, size)
        return self._read(key, start, size)

    def list(self, prefix: str, after: str | None = None) -> list[Listed]:
        check_prefix(prefix, after)
        self.counts.add(lists=1)
        found: list[Listed] = []
        try:
            self._check_root()
            self._walk(prefix, after, found)
        except OSError as error:
            raise self._failure(prefix, error) from error
        return self._fine(sorted(found, key=lambda listed: listed.key))

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            path = self.root / check_key(key)
            self.counts.add(deletes=1)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise self._failure(key, error) from error
            for folder in [folder for folder in path.parents if self.root in folder.parents]:
                try:
                    folder.rmdir()
                except OSError:
                    break  # not empty, or somebody else's by now

    def _write(self, data: bytes) -> Path:
        """A synced file in `.tmp`. Raises OSError, and leaves none then."""
        folder = self.root / ".tmp"
        if not folder.is_dir():
            make_directory(folder)
        path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), FILE_MODE)  # a umask may have taken the owner's rights
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return path

    def _link(self, written: Path, path: Path) -> Answer:
        for _ in range(8):
            self._make_folders(path.parent)
            try:
                path.hardlink_to(written)
            except FileExistsError:
                return self._fine(Answer.EXISTS)
            except FileNotFoundError:
                continue  # whoever deletes the last object of a folder removes it
            sync_folder(path.parent)
            return self._fine(Answer.CREATED)
        raise OSError(errno.EAGAIN, "the folder vanished again and again")

    def _make_folders(self, folder: Path) -> None:
        """Make the folders of a key, each known to the one above it before the key can be."""
        if folder == self.root or folder.is_dir():
            return
        self._make_folders(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=DIRECTORY_MODE)
            folder.chmod(DIRECTORY_MODE)
        sync_folder(folder.parent)

    def _read(self, key: str, start: int, size: int | None) -> bytes | None:
        self.counts.add(gets=1)
        try:
            self._check_root()
            with (self.root / check_key(key)).open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return self._fine(None)
        except OSError as error:
            raise self._failure(key, error) from error
        self.counts.add(down_bytes=len(data))
        return self._fine(data)

    def _walk(self, prefix: str, after: str | None, found: list[Listed]) -> None:
        try:
            entries = list(os.scandir(self.root / prefix))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            key = prefix + entry.name
            if KEY.fullmatch(key) is None:
                continue  # `.tmp`, and what others put here
            if entry.is_dir(follow_symlinks=False):
                if after is None or key + "/" > after or after.startswith(key + "/"):
                    self._walk(key + "/", after, found)
            elif entry.is_file(follow_symlinks=False) and (after is None or key > after):
                with contextlib.suppress(FileNotFoundError):
                    found.append(Listed(key, entry.stat(follow_symlinks=False).st_size))

    def _check_root(self) -> None:
        """Raise OSError if the directory is not the one that was opened: nothing may be written below a mount point."""
        try:
            found = self.root.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._root_is:
            raise OSError(errno.ESTALE, "it was replaced or unmounted")

    def _clear_left_over(self) -> None:
        with contextlib.suppress(OSError):
            for path in (self.root / ".tmp").iterdir():
                if time.time() - path.stat().st_mtime > LEFT_OVER_S:
                    path.unlink()

    def _failure(self, key: str, error: OSError, *, linking: bool = False) -> StoreError:
        return self._failed(failure(self.where, key, error, linking=linking))


def failure(where: str, key: str, error: OSError, *, linking: bool = False) -> StoreError:
    """What an error of the file system means for a run; `linking`: the one of a hard link."""
    reason = f"{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreDownError(f"store {where}: {key!r}: store full ({reason}). Fix: make room.", Cause.FULL)
    if linking and error.errno in NO_LINKS:
        fix = "use a file system with hard links (ext4, xfs, NFS) or a bucket"
        return StoreRefusedError(f"store {where}: {key!r}: no hard links here ({reason}). Fix: {fix}.", Cause.UNFIT)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "give this user the right to read and write there"
        return StoreRefusedError(f"store {where}: {key!r}: access denied ({reason}). Fix: {fix}.", Cause.DENIED)
    if key == "directory" and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        fix = "give the directory of a run"
        return StoreRefusedError(f"store {where}: there is no such directory ({reason}). Fix: {fix}.", Cause.NO_BUCKET)
    return StoreDownError(f"store {where}: {key!r}: store down ({reason}). Fix: mount it again.", Cause.DOWN)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
