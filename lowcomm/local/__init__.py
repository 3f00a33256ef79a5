"""What happens between syncs besides plain training (prox, scaffold, ...): one small file per method; none yet."""
