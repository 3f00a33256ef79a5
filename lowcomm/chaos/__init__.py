"""Faults on purpose: a plan of them, for real processes of a run that lives in a store, and an oracle that checks."""
