"""Runs that live in a store, as a user sees them: start, join, train as a member, look at them, stop."""
