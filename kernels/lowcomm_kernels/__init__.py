"""Packed codecs, one specification per op: eager reference, numba (CPU) and Triton (GPU) give the same bytes.

Import ops from their own package, for example `from lowcomm_kernels.quantise import quantise`.
"""
