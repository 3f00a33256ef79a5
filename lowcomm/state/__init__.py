"""The nouns of a sync: spec, anchors, fragments, replicas, what leaves an island and what arrives, checkpoint parts."""
