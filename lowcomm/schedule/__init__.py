"""Schedules: when islands exchange what."""

from lowcomm.schedule.adaptive import Adaptive
from lowcomm.schedule.base import Action, Measured, Pace, Schedule
from lowcomm.schedule.eager import Eager
from lowcomm.schedule.every_h import EveryH
from lowcomm.schedule.every_step import EveryStep
from lowcomm.schedule.growing import Growing
from lowcomm.schedule.late_merge import LateMerge
from lowcomm.schedule.one_step_delay import OneStepDelay
from lowcomm.schedule.post_local import PostLocal
from lowcomm.schedule.streaming import Streaming

__all__ = [
    "Action",
    "Adaptive",
    "Eager",
    "EveryH",
    "EveryStep",
    "Growing",
    "LateMerge",
    "Measured",
    "OneStepDelay",
    "Pace",
    "PostLocal",
    "Schedule",
    "Streaming",
]
