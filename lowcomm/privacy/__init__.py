"""Clipping, noise and accountants before the codec: one small file per mechanism."""

from lowcomm.privacy.accountant import Released, epsilon, load_dp_accounting
from lowcomm.privacy.adaptive_clip import AdaptiveClip
from lowcomm.privacy.client_gaussian import ClientGaussian
from lowcomm.privacy.example_gaussian import ExampleGaussian
from lowcomm.privacy.mechanism import Draw, Mechanism, State
from lowcomm.privacy.noise import add_noise, clip_to, norm
from lowcomm.privacy.rqm_accountant import RqmAccountant

__all__ = [
    "AdaptiveClip",
    "ClientGaussian",
    "Draw",
    "ExampleGaussian",
    "Mechanism",
    "Released",
    "RqmAccountant",
    "State",
    "add_noise",
    "clip_to",
    "epsilon",
    "load_dp_accounting",
    "norm",
]
