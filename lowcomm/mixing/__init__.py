"""How an island's weights and its neighbours' become its next ones: one small file per rule of gossip."""

from lowcomm.mixing.base import Heard, Place, Rule
from lowcomm.mixing.cooperation import Cooperation
from lowcomm.mixing.game import Game
from lowcomm.mixing.gasloc import GASLoC
from lowcomm.mixing.network_lasso import NetworkLasso
from lowcomm.mixing.noloco import NoLoCo
from lowcomm.mixing.overlapped import Overlapped
from lowcomm.mixing.plain import PlainMixing
from lowcomm.mixing.variance_corrected import VarianceCorrected

__all__ = [
    "Cooperation",
    "GASLoC",
    "Game",
    "Heard",
    "NetworkLasso",
    "NoLoCo",
    "Overlapped",
    "Place",
    "PlainMixing",
    "Rule",
    "VarianceCorrected",
]
