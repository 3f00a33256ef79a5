"""Who exchanges with whom in a round: one small file per topology; all islands with all is built in."""

from lowcomm.topology.base import Topology, mixing, spectral_gap
from lowcomm.topology.exponential import Exponential
from lowcomm.topology.random_pairs import RandomPairs
from lowcomm.topology.ring import Ring

__all__ = ["Exponential", "RandomPairs", "Ring", "Topology", "mixing", "spectral_gap"]
