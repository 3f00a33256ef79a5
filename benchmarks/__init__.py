"""Benchmarks: each writes benchmarks/results/NAME.json; tables and plots are made from these files."""
