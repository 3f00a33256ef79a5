"""The sync of islands: `LocalSGD` is what a loop holds, `round.py` is a round from top to bottom."""

from lowcomm.state.report import SyncReport
from lowcomm.sync.local_sgd import LocalSGD

__all__ = ["LocalSGD", "SyncReport"]
