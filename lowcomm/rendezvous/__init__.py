"""Rendezvous of several machines: keys and values at node 0, for those who know the run's secret."""
