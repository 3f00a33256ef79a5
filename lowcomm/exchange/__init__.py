"""Ways from islands' pseudo-gradients to updates of anchors, one per file; `choose` picks one at construction."""
