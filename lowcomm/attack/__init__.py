"""Attacks: what some islands do to their own contributions on purpose, to test rules that see each of them."""

from lowcomm.attack.alie import ALIE
from lowcomm.attack.base import Attack, Seen
from lowcomm.attack.collective import CollectiveAction
from lowcomm.attack.dmpa import DMPA
from lowcomm.attack.free_rider import FreeRider
from lowcomm.attack.gaussian import Gaussian
from lowcomm.attack.inner_product import InnerProduct
from lowcomm.attack.label_noise import LabelNoise
from lowcomm.attack.not_a_number import NotANumber
from lowcomm.attack.replay import Replay
from lowcomm.attack.scaling import Scaling
from lowcomm.attack.sign_flip import SignFlip

__all__ = [
    "ALIE",
    "DMPA",
    "Attack",
    "CollectiveAction",
    "FreeRider",
    "Gaussian",
    "InnerProduct",
    "LabelNoise",
    "NotANumber",
    "Replay",
    "Scaling",
    "Seen",
    "SignFlip",
]
