"""Hosts with shaped links between them, on one machine."""

from benchmarks.netlab.lab import Lab, Link, why_not

__all__ = ["Lab", "Link", "why_not"]
