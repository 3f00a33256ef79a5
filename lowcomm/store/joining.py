"""A request to join, on its way into the store. It holds a nonce: only a read tells whose request is there."""

from __future__ import annotations

from lowcomm.store import keys
from lowcomm.store.objects import Objects
from lowcomm.store.rules import ChainRules
from lowcomm.store.run_file import JoinRequest
from lowcomm.store.surroundings import Surroundings


class Joining:
    """Of one incarnation."""

    def __init__(self, objects: Objects, rules: ChainRules, around: Surroundings) -> None:
        self.objects, self.rules, self.around = objects, rules, around
        self.request: JoinRequest | None = None
        self.seen = False
        """Whether the request was read back."""

    def is_old(self, version: int) -> bool:
        """Whether nobody may be admitted by it any more."""
        return self.request is not None and version - self.request.base > self.rules.stale

    def ask(self, inc: str, version: int, expected_s: float) -> None:
        """Ask with this version as base; the first call decides. Raises StoreError."""
        if self.request is None:
            self.request = JoinRequest(
                run_id=self.rules.run_id, name=self.around.name, inc=inc, base=version, nonce=self.around.draw(),
                about=self.around.about, expected_s=expected_s,
            )  # fmt: skip
        if not self.seen:
            key, data = keys.join(self.request.base, inc), self.request.write()
            self.objects.put_new(key, data)
            self.seen = self.objects.get(key) == data

    def withdraw(self) -> None:
        """Take the request back, so that nobody waits for who leaves; whoever has read it may still let it in.

        Raises StoreError.
        """
        if self.request is not None:
            self.objects.delete([keys.join(self.request.base, self.request.inc)])
