"""Aggregators: contributions of the islands -> one Delta."""

from lowcomm.aggregate.base import Aggregate, Aggregator, Context
from lowcomm.aggregate.gram import GramRule
from lowcomm.aggregate.krum import Krum
from lowcomm.aggregate.mean import Mean

from lowcomm.aggregate import lora  # isort: skip  # its rules build on what is above

__all__ = ["Aggregate", "Aggregator", "Context", "GramRule", "Krum", "Mean", "lora"]
