"""Codecs: Delta <-> Payload."""

from lowcomm.codec.ans import Ans
from lowcomm.codec.base import Codec, State
from lowcomm.codec.bf16 import BF16
from lowcomm.codec.dct_topk import DctTopK
from lowcomm.codec.either_factor import EitherFactor
from lowcomm.codec.error_feedback import ErrorFeedback
from lowcomm.codec.fedzip import FedZip
from lowcomm.codec.fp8 import Fp8
from lowcomm.codec.fp32 import Fp32
from lowcomm.codec.graded import Graded
from lowcomm.codec.in_turn import InTurn
from lowcomm.codec.int4 import Int4
from lowcomm.codec.int8 import Int8
from lowcomm.codec.largest_layers import LargestLayers
from lowcomm.codec.lion import Lion
from lowcomm.codec.local_residual import LocalResidual
from lowcomm.codec.packed import Packed
from lowcomm.codec.partial_sharing import PartialSharing
from lowcomm.codec.powersgd import PowerSGD
from lowcomm.codec.random_k import RandomK
from lowcomm.codec.recoded import Recoded
from lowcomm.codec.rqm import Rqm
from lowcomm.codec.shared import Shared
from lowcomm.codec.sign import Sign
from lowcomm.codec.threshold import Threshold
from lowcomm.codec.topk import TopK
from lowcomm.codec.two_bit import TwoBit
from lowcomm.codec.zstd import Zstd

__all__ = [
    "Ans",
    "BF16",
    "Codec",
    "DctTopK",
    "EitherFactor",
    "ErrorFeedback",
    "FedZip",
    "Fp8",
    "Fp32",
    "Graded",
    "InTurn",
    "Int4",
    "Int8",
    "LargestLayers",
    "Lion",
    "LocalResidual",
    "Packed",
    "PartialSharing",
    "PowerSGD",
    "RandomK",
    "Recoded",
    "Rqm",
    "Shared",
    "Sign",
    "State",
    "Threshold",
    "TopK",
    "TwoBit",
    "Zstd",
]
