"""LoRA rules: how the clients' low-rank adapters become one, and what each rule aggregates exactly."""

from lowcomm.aggregate.lora.adapter import Adapter, Product, distances, inner, relative_error, target
from lowcomm.aggregate.lora.cellm import Cellm
from lowcomm.aggregate.lora.fedex import FedEx
from lowcomm.aggregate.lora.fedit import FedIT
from lowcomm.aggregate.lora.fedrand import FedRand
from lowcomm.aggregate.lora.fedsa import FedSA
from lowcomm.aggregate.lora.fedsb import FedSB
from lowcomm.aggregate.lora.ffa import FFA
from lowcomm.aggregate.lora.flexlora import FlexLoRA
from lowcomm.aggregate.lora.flora import FLoRA
from lowcomm.aggregate.lora.hetlora import HetLoRA
from lowcomm.aggregate.lora.hlora import HLoRA
from lowcomm.aggregate.lora.lora_fair import LoraFair
from lowcomm.aggregate.lora.rolora import RoLoRA
from lowcomm.aggregate.lora.rule import Aggregated, LoraRule
from lowcomm.aggregate.lora.senders import SenderMean

__all__ = [
    "Adapter",
    "Aggregated",
    "Cellm",
    "FFA",
    "FLoRA",
    "FedEx",
    "FedIT",
    "FedRand",
    "FedSA",
    "FedSB",
    "FlexLoRA",
    "HLoRA",
    "HetLoRA",
    "LoraFair",
    "LoraRule",
    "Product",
    "RoLoRA",
    "SenderMean",
    "distances",
    "inner",
    "relative_error",
    "target",
]
