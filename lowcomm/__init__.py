"""lowcomm."""
