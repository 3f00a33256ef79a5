"""The interface to a store: create a key once, read, list, delete; its errors, and what it counts.

Keys are relative to the run: segments of `[A-Za-z0-9_.-]`, joined by "/", none of which begins with a dot. Prefixes of
listings are "" or end with "/". One call is one request (a listing: one for each page): nothing is asked again behind
the caller's back, so that what is counted is what the service is asked. Calls may come from several threads.
"""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from lowcomm.store.counts import Counts
from lowcomm.types import LowcommError

PART_BYTES = 1 << 26
"""Larger bodies go up as parts: a conditional create is one request, whole and in memory."""
KEY = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,128}(/(?!\.)[A-Za-z0-9_.-]{1,128}){0,7}")
MOST_KEY = 512
Result = TypeVar("Result")


class Answer(enum.Enum):
    """What `put_new` answers. None of them says whose bytes are there: only a read does."""

    CREATED = "created"
    EXISTS = "exists"
    """The key exists, or the store refused because of another write to it, and nothing may be there."""
    UNKNOWN = "unknown"
    """No answer came in time, or an error of the service: it may have been created, or will be."""


class Cause(enum.Enum):
    """Why a request failed, as it is named to people."""

    DOWN = "store down"
    SLOW = "slow"
    FULL = "store full"
    DENIED = "access denied"
    CREDENTIALS = "credentials missing or expired"
    NO_BUCKET = "no such bucket"
    CLOCK = "clock off"
    REGION = "wrong region"
    UNFIT = "unfit store"


@dataclass(frozen=True)
class Listed:
    """A key that a listing named, and the bytes of its object."""

    key: str
    size: int


class StoreError(LowcommError):
    """A request failed: one line with what was asked, which key, the cause and the fix."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


class StoreDownError(StoreError):
    """A failure that time may cure: back off and go on."""


class StoreRefusedError(StoreError):
    """The store refuses (credentials, permission, no bucket, clock): at start exit 2; in a run back off and name it."""


class Objects(ABC):
    """A store under one prefix. Only creating must be exact: what is read or listed may lag behind."""

    where: str
    """The address for people and `lowcomm join`; it holds no secret."""
    part_bytes: int = PART_BYTES
    """Payloads above it go up as parts, and larger objects are read by ranges."""
    poll_first_s: float = 0.25
    poll_most_s: float = 5.0

    def __init__(self) -> None:
        self.counts = Counts()
        self.trouble: StoreError | None = None
        """The latest request's failure, also where `put_new` answered UNKNOWN; None when it went well."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> Answer:
        """Create the key, whole or not at all, if there is none; atomic. Raises StoreRefusedError, or StoreDownError
        where it surely did not land and never will."""

    @abstractmethod
    def get(self, key: str) -> bytes | None:
        """The object's bytes; None: nothing is there, or is seen yet. Raises StoreError."""

    @abstractmethod
    def get_range(self, key: str, start: int, size: int) -> bytes | None:
        """At most `size` (1 or more) bytes from `start` on, fewer or none where the object ends; None as for `get`."""

    @abstractmethod
    def list(self, prefix: str, after: str | None = None) -> list[Listed]:
        """Keys under the prefix, ascending, that sort after `after` (of the form of a key). Raises StoreError."""

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; a key that is not there is no error. Raises StoreError, and some may be gone then."""

    def _fine(self, result: Result) -> Result:
        """The result of a request that went well."""
        self.trouble = None
        return result

    def _failed(self, error: StoreError) -> StoreError:
        """The error of a request, which is remembered."""
        self.trouble = error
        return error


def check_key(key: str) -> str:
    """The key itself. Raises ValueError for one that no store is asked for: the caller built it wrongly."""
    if KEY.fullmatch(key) is None or len(key) > MOST_KEY:
        raise ValueError(f"no key of a store: {key[:200]!r}")
    return key


def check_prefix(prefix: str, after: str | None) -> None:
    """Raise ValueError for a prefix that does not end a segment, or an `after` that is no key under it."""
    if prefix and not (prefix.endswith("/") and KEY.fullmatch(prefix[:-1])):
        raise ValueError(f"no prefix of a store: {prefix[:200]!r}")
    if after is not None and not (after.startswith(prefix) and KEY.fullmatch(after)):
        raise ValueError(f"after = {after[:200]!r} is no key under {prefix!r}")


def check_range(start: int, size: int) -> None:
    """Raise ValueError for a range that no store is asked for."""
    if start < 0 or size < 1:
        raise ValueError(f"no range of an object: {size} bytes from {start}")
