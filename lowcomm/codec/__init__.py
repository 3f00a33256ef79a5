"""Codecs: Delta <-> Payload."""

from lowcomm.codec.base import Codec, State
from lowcomm.codec.fp32 import Fp32

__all__ = ["Codec", "Fp32", "State"]
