"""Transports: how bytes get from island to island, counted."""

from lowcomm.transport.base import Transport
from lowcomm.transport.collective import Collective
from lowcomm.transport.default import default_transport
from lowcomm.transport.simulated import Simulated

__all__ = ["Collective", "Simulated", "Transport", "default_transport"]
