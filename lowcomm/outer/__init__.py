"""Outer optimizers: what turns the aggregated Delta into new global weights."""

from lowcomm.outer.base import Outer
from lowcomm.outer.delayed_nesterov import DelayedNesterov
from lowcomm.outer.fedadagrad import FedAdagrad
from lowcomm.outer.fedadam import FedAdam
from lowcomm.outer.fedyogi import FedYogi
from lowcomm.outer.heavy_ball import HeavyBall
from lowcomm.outer.heloco import HeLoCo
from lowcomm.outer.lion import Lion
from lowcomm.outer.nesterov import Nesterov
from lowcomm.outer.pier import Pier
from lowcomm.outer.schedule_free import ScheduleFree
from lowcomm.outer.sgd import SGD

__all__ = [
    "SGD",
    "DelayedNesterov",
    "FedAdagrad",
    "FedAdam",
    "FedYogi",
    "HeLoCo",
    "HeavyBall",
    "Lion",
    "Nesterov",
    "Outer",
    "Pier",
    "ScheduleFree",
]
