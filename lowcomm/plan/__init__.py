"""The runtime model: measured link and model size to H, bits and overlap; not built yet."""
