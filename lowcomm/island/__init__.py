"""Islands: how one replica trains between syncs, and what each of its ranks syncs."""

from lowcomm.island.batched import BatchedIslands
from lowcomm.island.config import IslandConfig
from lowcomm.island.ddp import DDPPart
from lowcomm.island.fsdp import FSDPPart
from lowcomm.island.gpa import Gpa
from lowcomm.island.inner import AdamW, Inner, InnerConfig
from lowcomm.island.lion import Lion
from lowcomm.island.lr import LR_SCHEDULES, LrSchedule, lr_factor
from lowcomm.island.mesh import Mesh
from lowcomm.island.muon import Muon
from lowcomm.island.part import Part, Whole
from lowcomm.island.pipeline_island import StagePart
from lowcomm.island.plain import Batch, PlainIsland
from lowcomm.island.private import PrivateIsland
from lowcomm.island.savic import Savic
from lowcomm.island.soap import Soap
from lowcomm.island.tensor import TensorPart
from lowcomm.island.zero import EngineOptimizer, MeshUnit, ZeROPart

__all__ = [
    "LR_SCHEDULES",
    "AdamW",
    "Batch",
    "BatchedIslands",
    "DDPPart",
    "EngineOptimizer",
    "FSDPPart",
    "Gpa",
    "Inner",
    "InnerConfig",
    "IslandConfig",
    "Lion",
    "LrSchedule",
    "Mesh",
    "MeshUnit",
    "Muon",
    "Part",
    "PlainIsland",
    "PrivateIsland",
    "Savic",
    "Soap",
    "StagePart",
    "TensorPart",
    "Whole",
    "ZeROPart",
    "lr_factor",
]
