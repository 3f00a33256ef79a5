"""Pages to choose, start, watch and compare runs, in a browser of this machine: `lowcomm ui`."""
