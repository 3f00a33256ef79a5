"""Only what is shared is sent; tensors of certain names stay with their island for good (FedSA-LoRA).

Guo et al., FedSA-LoRA, arXiv 2410.01463: A is sent, B is private.

Shapes and dtypes: those of the Delta, fp32. Cost: `codec`'s for the shared tensors, 64 + 8 ceil(n / 64) B more.
Raises: as Parts; PayloadError if every tensor is private.
Deviates: any names may be private (personal heads: `("*.score.*",)`).
Reduces to: `codec`, without private names; local training, if hardly anything is shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from lowcomm.codec.parts import Parts
from lowcomm.types import Delta, PayloadError, Round, require


@dataclass(frozen=True, kw_only=True)
class Shared(Parts):
    """Tensors that match a pattern are neither sent nor overwritten."""

    own: tuple[str, ...] = ("*.lora_B.*", "*.lora_embedding_B.*")
    """Name patterns (fnmatch) of what each island keeps to itself."""

    def pick(self, delta: Delta, round: Round) -> list[bool]:
        picked = [not self._is_own(name) for name in delta]
        if not any(picked):
            raise PayloadError(f"every tensor matches {self.own}: nothing is left to send")
        return picked

    def private(self, like: Delta, round: Round) -> frozenset[str]:
        return frozenset(name for name in like if self._is_own(name))

    def check(self) -> None:
        super().check()
        require(len(self.own) > 0, "sync.codec.own", self.own, "at least one pattern", "('*.lora_B.*',)")

    def _is_own(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.own)
