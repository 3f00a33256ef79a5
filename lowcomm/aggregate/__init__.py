"""Aggregators: contributions of the islands -> one Delta."""

from lowcomm.aggregate.base import Aggregator
from lowcomm.aggregate.mean import Mean

__all__ = ["Aggregator", "Mean"]
