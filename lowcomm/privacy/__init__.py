"""Clipping, noise and accountants before the codec: one small file per mechanism; none yet."""
