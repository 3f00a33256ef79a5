"""What takes part in a round beside the Delta, one per file; only those in use are in `SyncState.hooks`."""
