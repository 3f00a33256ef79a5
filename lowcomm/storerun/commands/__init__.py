"""Commands of runs that live in a store."""
