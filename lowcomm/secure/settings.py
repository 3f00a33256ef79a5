"""Secure aggregation by pairwise masks, with recovery of those that drop out.

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, arXiv 1611.04482 (protocol for
honest-but-curious parties).

    x_k = round(w_k Delta_k 2^(bits - 2) / limit) mod 2^bits
    y_k = x_k + PRG(b_k) + sum_{j > k} PRG(s_kj) - sum_{j < k} PRG(s_kj) mod 2^bits,   sum_k y_k - masks = sum_k x_k

w_k: weight of the island in the mean; b_k: seed of its own mask; s_kj: seed of a pair, from X25519 and HKDF-SHA256;
PRG: ChaCha20. b_k and the private key behind the s_kj are cut into Shamir shares, one for each party, sealed with
ChaCha20-Poly1305. Of a party whose y_k arrived the others give shares of b_k, of one that dropped shares of its key:
never both. Keys are new in every round and fragment, so nothing of them is in a checkpoint.
Shapes and dtypes: Delta fp32, flat; sums are integers modulo 2^bits, so they are exact and the same bits everywhere,
whatever the masks. Rounding: at most limit 2^(1 - bits) per entry and island; entries above `limit` are cut to it.
Cost on the wire, per island with n islands: 2 (n - 1) / n P bits / 8 for P parameters, as for fp32 without secure
aggregation with bits = 32; and (n - 1) (64 + 82 + 34 n) + 4 (n - 1) bytes of keys, shares and checksums, and
(n - 1) (6 n + 4) bytes that say who is left (4 islands or more; three gathers in a row, twice).
Computation: n ChaCha20 streams of P entries to mask, and again as many to take the masks off.
Processes that die, two in the same exchange too: the others go on without them (`lowcomm.exchange.secure`).
Raises: SyncError if fewer than the threshold are left: nothing is committed. ConfigError for what can't be summed.
Deviates: there is no server. Each island adds up one n-th of the vector, and so sees one n-th of every masked vector.
What is protected from whom stands in docs/pages/security.md: nobody is assumed to break the protocol, and with two
parties each can take its own contribution off the sum.
Reduces to: the sum of the x_k, exactly, which is the mean without secure aggregation up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lowcomm.types import ConfigError, require


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """Masks on every contribution, in integers modulo 2^bits."""

    bits: Literal[32, 64] = 32
    """Bits of each entry on the wire."""
    limit: float = 4.0
    """Largest entry of a pseudo-gradient, a number above 0; larger ones are cut to it."""
    threshold: float = 0.67
    """Fraction of a round's parties whose shares unmask the sum: more than half, so that there is only one sum."""

    def fewest(self, parties: int) -> int:
        """Parties that must be left: more than half, and two at least."""
        return max(2, parties // 2 + 1, math.ceil(self.threshold * parties))

    def check(self) -> None:
        """Raise ConfigError for a setting out of range, or without the package that does the cryptography."""
        require(self.bits in (32, 64), "sync.secure.bits", self.bits, "32 or 64", "32")
        ok = 0 < self.limit <= 1e30
        require(ok, "sync.secure.limit", self.limit, "above 0, at most 1e30", "4.0 is far above usual entries")
        ok = 0.5 < self.threshold <= 1
        require(ok, "sync.secure.threshold", self.threshold, "0.5 < threshold <= 1", "0.67")
        try:
            import cryptography  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "sync.secure needs the package cryptography, which is not installed. Fix: pip install 'lowcomm[secure]'"
            ) from error
