"""Who has which rows: partitions of one corpus into clients.

The names are those of flwr-datasets where it has the same. It is not used: it needs datasets below 5 and rich below 15,
which would hold back the rest of the toolkit, matplotlib and seaborn, and rows that are a `datasets.Dataset`.
"""

from lowcomm.data.partition.base import Partition
from lowcomm.data.partition.by_length import ByLength
from lowcomm.data.partition.dirichlet import Dirichlet
from lowcomm.data.partition.iid import Iid
from lowcomm.data.partition.natural_id import NaturalId
from lowcomm.data.partition.pathological import Pathological
from lowcomm.data.partition.quantity import Quantity

__all__ = ["ByLength", "Dirichlet", "Iid", "NaturalId", "Partition", "Pathological", "Quantity"]
