"""Buckets of S3, GCS and Azure, and what speaks their protocols, through `obstore`.

A conditional create is one request with the whole body. The library repeats nothing, so that each request is counted.
Time-outs are 30 s plus the body at 1 MB/s. 409 (a conflict of which nothing landed) comes back from the library as
"exists", like a key that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lowcomm.store.objects import (
    Answer,
    Listed,
    Objects,
    StoreError,
    StoreRefusedError,
    check_key,
    check_prefix,
    check_range,
)
from lowcomm.store.remote_errors import never_landed, store_error

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

TIME_OUT_S = 30.0
SLOWEST_BYTES_PER_S = 1_000_000
PAGE = 1000
"""Keys of one page of a listing, for S3 and GCS (Azure: 5000, counted as several)."""
Build = Callable[["ClientConfig"], "ObjectStore"]
"""A client of one bucket under the run's prefix, whose options are given."""


class RemoteObjects(Objects):
    """A bucket under a prefix; one client for each size class of bodies, because a client has one time-out."""

    def __init__(self, build: Build, *, where: str, bulk_delete: bool = False, time_out_s: float = TIME_OUT_S) -> None:
        super().__init__()
        self.where = where
        self._build, self._bulk_delete, self._time_out_s = build, bulk_delete, time_out_s
        self._clients: dict[tuple[bool, int], ObjectStore] = {}

    def put_new(self, key: str, data: bytes) -> Answer:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        check_key(key)
        self.counts.add(puts=1, up_bytes=len(data))
        try:
            obstore.put(self._client(len(data), up=True), key, data, mode="create")
        except AlreadyExistsError:
            return self._fine(Answer.EXISTS)
        except (BaseError, OSError) as error:
            failed = self._failed(store_error(self.where, f"put {key!r}", error, creating=True))
            if isinstance(failed, StoreRefusedError) or never_landed(error):
                raise failed from None
            return Answer.UNKNOWN
        return self._fine(Answer.CREATED)

    def get(self, key: str) -> bytes | None:
        import obstore

        check_key(key)
        self.counts.add(gets=1)
        return self._read(key, lambda: obstore.get(self._client(self.part_bytes), key).bytes().to_bytes())

    def get_range(self, key: str, start: int, size: int) -> bytes | None:
        import obstore

        check_key(key)
        check_range(start, size)
        self.counts.add(gets=1)
        span = (start, start + size)
        return self._read(key, lambda: obstore.get(self._client(size), key, options={"range": span}).bytes().to_bytes())

    def list(self, prefix: str, after: str | None = None) -> list[Listed]:
        import obstore
        from obstore.exceptions import BaseError

        check_prefix(prefix, after)
        pages = 1
        try:
            found = obstore.list(self._client(0), prefix[:-1] or None, offset=after, chunk_size=PAGE).collect()
            pages = max(1, -(-len(found) // PAGE))
        except (BaseError, OSError) as error:
            raise self._failure(f"list {prefix!r}", error) from None
        finally:
            self.counts.add(lists=pages)
        listed = (Listed(entry["path"], entry["size"]) for entry in found)
        return self._fine(sorted((one for one in listed if after is None or one.key > after), key=lambda one: one.key))

    def delete(self, keys: Sequence[str]) -> None:
        import obstore
        from obstore.exceptions import BaseError

        for key in keys:
            check_key(key)
        self.counts.add(deletes=len(keys))
        for some in [list(keys)] if self._bulk_delete else [[key] for key in keys]:
            try:
                obstore.delete(self._client(0), some)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._failure(f"delete {some[0]!r}", error) from None
            except (BaseError, OSError) as error:
                raise self._failure(f"delete {some[0]!r}", error) from None
        self._fine(None)

    def _read(self, key: str, read: Callable[[], bytes]) -> bytes | None:
        from obstore.exceptions import BaseError

        try:
            data = read()
        except (BaseError, OSError) as error:
            text = str(error)
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in text and "ContainerNotFound" not in text:
                return self._fine(None)
            if any(sign in text for sign in ("416 Range", "StartTooLarge", "InvalidRange")):
                return self._fine(b"")  # it is there and ends before
            raise self._failure(f"get {key!r}", error) from None
        self.counts.add(down_bytes=len(data))
        return self._fine(data)

    def _failure(self, what: str, error: Exception) -> StoreError:
        return self._failed(store_error(self.where, what, error))

    def _client(self, body_bytes: int, *, up: bool = False) -> ObjectStore:
        """The client for bodies of up to the next power of two of megabytes, each with a second more."""
        megabytes = -(-body_bytes // SLOWEST_BYTES_PER_S)
        size_class = (up, (megabytes - 1).bit_length() if megabytes else 0)
        if size_class not in self._clients:
            seconds = self._time_out_s + (1 << size_class[1] if megabytes else 0)
            options: ClientConfig = {"timeout": f"{int(seconds * 1000)}ms", "connect_timeout": "10s"}
            if not up:  # of an upload it would bound all of it, since nothing is read before its end
                options["read_timeout"] = f"{int(self._time_out_s * 1000)}ms"
            self._clients[size_class] = self._build(options)
        return self._clients[size_class]
