"""The runtime model: a link, a model and a step time to H, fragments, delay, codec and utilisation."""
