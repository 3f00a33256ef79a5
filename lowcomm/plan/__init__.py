"""The runtime model: a link, a model and a step time to H, fragments, delay, codec, streams and predicted utilisation."""
