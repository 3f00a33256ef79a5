"""Creation of a key where only a read counts: whatever a request answers, the bytes that are read are history.

A lost answer that was asked again comes back as "exists", so does a conflict of which nothing landed, and a request
that timed out may land minutes later. So: put, read, and put again while nothing is there.
"""

from __future__ import annotations

from collections.abc import Callable

from lowcomm.store.objects import Answer, Objects


def create_once(objects: Objects, key: str, data: bytes) -> bytes | None:
    """Put and read: what the key holds, equal to `data` if it is one's own. None: back off and call it again.

    Raises StoreError; the same call with the same bytes may follow, now or after a restart of the network.
    """
    objects.put_new(key, data)
    return objects.get(key)


def create(objects: Objects, key: str, data: bytes, back_off: Callable[[int], None]) -> bytes:
    """`create_once` until something is read. `back_off(k)` waits after the k-th vain try, from 0, or raises."""
    tries = 0
    while (held := create_once(objects, key, data)) is None:
        back_off(tries)
        tries += 1
    return held


def create_own_once(objects: Objects, key: str, data: bytes) -> bool:
    """Create a key that only this incarnation writes, always with these bytes: True once it is there.

    Large payloads are not read back: "created" is then enough, and after any other answer one byte. Raises StoreError.
    """
    if objects.put_new(key, data) is Answer.CREATED:
        return True
    return objects.get_range(key, 0, 1) is not None
