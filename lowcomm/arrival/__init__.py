"""Modes that never wait: when contributions that wait become a version, and how each of them counts in it."""

from lowcomm.arrival.anarchic import Anarchic
from lowcomm.arrival.anarchic_silos import AnarchicSilos
from lowcomm.arrival.backup_workers import BackupWorkers
from lowcomm.arrival.base import ArrivalRule, Moment, Pace, Turn, Waiting
from lowcomm.arrival.compass import FedCompass
from lowcomm.arrival.decoupled import Decoupled
from lowcomm.arrival.edit import AEdit
from lowcomm.arrival.fedbuff import FedBuff
from lowcomm.arrival.heloco import TurnStale
from lowcomm.arrival.timed import Timed
from lowcomm.arrival.token_batch import TokenBatch

__all__ = [
    "AEdit", "Anarchic", "AnarchicSilos", "ArrivalRule", "BackupWorkers", "Decoupled", "FedBuff", "FedCompass",
    "Moment", "Pace", "Timed", "TokenBatch", "Turn", "TurnStale", "Waiting",
]  # fmt: skip
