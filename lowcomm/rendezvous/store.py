"""Gives torch.distributed the rendezvous of a run as its store: gloo and NCCL find each other by it.

torch calls these methods from C++ as well, under names of its own, with bytes as values.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from lowcomm.rendezvous.client import KeyClient, RendezvousError


class RunStore(dist.Store):
    """Keep a reference as long as there is a group: C++ calls back into this object."""

    def __init__(self, client: KeyClient, timeout_s: float) -> None:
        super().__init__()
        self._client = client
        self.set_timeout(timedelta(seconds=timeout_s))

    def close(self) -> None:
        """Leave; safe to call twice."""
        self._client.close()

    def set(self, key: str, value: str | bytes) -> None:
        self._client.set(key, _bytes(value))

    def get(self, key: str) -> bytes:
        """Wait for a value, as all stores of torch do."""
        return self._client.get(key, self._limit_s())

    def add(self, key: str, value: int) -> int:
        return self._client.add(key, value)

    def check(self, keys: Sequence[str]) -> bool:
        return self._client.wait(keys, 0.0)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Raises RendezvousError, a RuntimeError, if one is not there in time."""
        limit_s = self._limit_s() if timeout is None else timeout.total_seconds()
        if not self._client.wait(keys, limit_s):
            raise RendezvousError(f"the rendezvous has had not all of {list(keys)[:4]} for {limit_s:.0f} s")

    def compare_set(self, key: str, expected_value: str | bytes, desired_value: str | bytes) -> bytes:
        return self._client.swap(key, _bytes(expected_value), _bytes(desired_value))

    def delete_key(self, key: str) -> bool:
        return self._client.delete(key)

    def num_keys(self) -> int:
        return self._client.count()

    def clone(self) -> RunStore:
        """Itself: threads may share it."""
        return self

    def _limit_s(self) -> float:
        """As `set_timeout` has it."""
        return self.timeout.total_seconds()  # pyright: ignore[reportAttributeAccessIssue]  # torch's stub lacks it

    deleteKey = delete_key  # noqa: N815  # C++ asks by this name
    getNumKeys = num_keys  # noqa: N815


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)
