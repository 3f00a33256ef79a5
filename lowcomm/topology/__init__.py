"""Who exchanges with whom in a round: one small file per topology; all islands with all is built in."""

from lowcomm.topology.barabasi_albert import BarabasiAlbert
from lowcomm.topology.base import Topology, metropolis, mixing, spectral_gap
from lowcomm.topology.churn import Churn, Loss
from lowcomm.topology.complete import Complete
from lowcomm.topology.edges import Edges
from lowcomm.topology.exponential import Exponential
from lowcomm.topology.graph import check_graph, components, joined
from lowcomm.topology.multigraph import Multigraph
from lowcomm.topology.one_peer import OnePeer
from lowcomm.topology.random_pairs import RandomPairs
from lowcomm.topology.random_regular import RandomRegular
from lowcomm.topology.ring import Ring
from lowcomm.topology.torus import Torus

__all__ = [
    "BarabasiAlbert",
    "Churn",
    "Complete",
    "Edges",
    "Exponential",
    "Loss",
    "Multigraph",
    "OnePeer",
    "RandomPairs",
    "RandomRegular",
    "Ring",
    "Topology",
    "Torus",
    "check_graph",
    "components",
    "joined",
    "metropolis",
    "mixing",
    "spectral_gap",
]
