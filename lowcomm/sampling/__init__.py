"""Which clients take part in a round: one small file per method."""

from lowcomm.sampling.base import Sampling
from lowcomm.sampling.fixed_size import FixedSize
from lowcomm.sampling.poisson import Poisson

__all__ = ["FixedSize", "Poisson", "Sampling"]
