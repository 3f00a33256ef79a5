"""What happens between syncs besides plain training: one small file per method."""

from __future__ import annotations

from lowcomm.local.baffle import Baffle
from lowcomm.local.desloc import DesLoc
from lowcomm.local.directions import Probe, move
from lowcomm.local.estimate import Estimate
from lowcomm.local.fedprox import FedProx
from lowcomm.local.objective import Objective
from lowcomm.local.one_byte import OneByte
from lowcomm.local.rank_decay import RankDecay
from lowcomm.local.scaffold import Scaffold
from lowcomm.local.select_layers import SelectLayers
from lowcomm.local.sharpness import SharpnessAware, ascend

__all__ = [
    "Baffle",
    "DesLoc",
    "Estimate",
    "FedProx",
    "Objective",
    "OneByte",
    "Probe",
    "RankDecay",
    "Scaffold",
    "SelectLayers",
    "SharpnessAware",
    "ascend",
    "move",
]
