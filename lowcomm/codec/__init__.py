"""Codecs: Delta <-> Payload."""

from lowcomm.codec.base import Codec, State
from lowcomm.codec.bf16 import BF16
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.fp8 import Fp8
from lowcomm.codec.fp32 import Fp32
from lowcomm.codec.int4 import Int4
from lowcomm.codec.int8 import Int8
from lowcomm.codec.sign import Sign
from lowcomm.codec.two_bit import TwoBit

__all__ = ["BF16", "Codec", "ErrorFeedback", "Fp8", "Fp32", "Int4", "Int8", "Sign", "State", "TwoBit"]
