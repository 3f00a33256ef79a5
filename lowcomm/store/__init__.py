"""Training runs that live in an object store: islands come and go, history is a chain of commits."""
