"""One island of every method of benchmarks/headline.py: lowcomm's, and those of other packages on the same model."""
