"""Clipping, noise and accountants before the codec: one small file per mechanism."""

from lowcomm.privacy.rqm_accountant import RqmAccountant

__all__ = ["RqmAccountant"]
