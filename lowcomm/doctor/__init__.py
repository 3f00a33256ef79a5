"""`lowcomm doctor`."""
