"""`lowcomm sweep`."""
