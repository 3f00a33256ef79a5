"""Secure aggregation: what an island sends looks random, and only the sum over the islands can be read.

`party` and `unmask` need the package cryptography and are imported where they are used.
"""

from lowcomm.secure.fixed_point import dtype_of, from_fixed, to_fixed
from lowcomm.secure.settings import SecureSum
from lowcomm.secure.shamir import SHARE_BYTES

__all__ = ["SHARE_BYTES", "SecureSum", "dtype_of", "from_fixed", "to_fixed"]
