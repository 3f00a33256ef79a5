"""One round of a sync: from what the islands trained to the new weights."""
