"""Aggregators: contributions of the islands -> one Delta."""

from lowcomm.aggregate.afl import AFL
from lowcomm.aggregate.base import Aggregate, Aggregator, Context
from lowcomm.aggregate.bucketing import Bucketing
from lowcomm.aggregate.centred_clipping import CentredClipping
from lowcomm.aggregate.coordinates import CoordinateRule
from lowcomm.aggregate.edit import EDiT
from lowcomm.aggregate.fedcpa import FedCPA
from lowcomm.aggregate.fedfb import FedFB
from lowcomm.aggregate.flag import Flag
from lowcomm.aggregate.geometric_median import GeometricMedian
from lowcomm.aggregate.gram import GramRule
from lowcomm.aggregate.krum import Krum
from lowcomm.aggregate.mean import Mean
from lowcomm.aggregate.median import Median
from lowcomm.aggregate.mixing import Mixed, Mixing
from lowcomm.aggregate.monna import MoNNA
from lowcomm.aggregate.nearest_neighbours import NNM
from lowcomm.aggregate.norm_bound import NormBound
from lowcomm.aggregate.qffl import QFFL
from lowcomm.aggregate.rffl import RFFL
from lowcomm.aggregate.robust import RobustRule
from lowcomm.aggregate.shapley import Shapley
from lowcomm.aggregate.smea import SMEA
from lowcomm.aggregate.sybil_wall import SybilWall
from lowcomm.aggregate.trimmed_mean import TrimmedMean
from lowcomm.aggregate.trust import Trust

from lowcomm.aggregate import lora  # isort: skip  # its rules build on what is above

__all__ = [
    "AFL",
    "NNM",
    "QFFL",
    "RFFL",
    "SMEA",
    "Aggregate",
    "Aggregator",
    "Bucketing",
    "CentredClipping",
    "Context",
    "CoordinateRule",
    "EDiT",
    "FedCPA",
    "FedFB",
    "Flag",
    "GeometricMedian",
    "GramRule",
    "Krum",
    "Mean",
    "Median",
    "Mixed",
    "Mixing",
    "MoNNA",
    "NormBound",
    "RobustRule",
    "Shapley",
    "SybilWall",
    "TrimmedMean",
    "Trust",
    "lora",
]
