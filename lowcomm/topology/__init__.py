"""Who exchanges with whom in a round: one small file per topology; all islands with all is built in."""
