"""What a run is beside its rounds: its parts, its directory, its log, stop and resume, its end."""
