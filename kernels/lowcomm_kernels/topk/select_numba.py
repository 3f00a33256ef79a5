"""Exact choice of the k largest magnitudes of one chunk, for numba kernels.

The maxima over groups of eight bound the k-th largest magnitude from below: k groups have a maximum at least as large
as the k-th largest maximum. Only the groups that reach it are looked into, about k of them. Nothing is sampled and
there is no second path for hard inputs; they only have more candidates.
"""

from __future__ import annotations

import numpy as np
from numba import njit

GROUP = 8
INFINITY = np.int32(0x7F800000)
_ABS = np.int32(0x7FFFFFFF)


@njit(cache=True, fastmath=False, error_model="numpy")
def _count_at_least(keys, bound):
    count = np.int32(0)
    for i in range(keys.size):
        count = np.int32(count + np.int32(keys[i] >= bound))
    return count


@njit(cache=True, fastmath=False, error_model="numpy")
def _bisect(keys, k, low, high, slack):
    """A bound that at least k and, where ties allow, at most k + slack keys reach; low does, high is too high."""
    while np.int64(high) - np.int64(low) > 1:
        middle = np.int32((np.int64(low) + np.int64(high)) >> 1)
        count = _count_at_least(keys, middle)
        if count >= k:
            low = middle
            if count <= k + slack:
                break
        else:
            high = middle
    return low


@njit(cache=True, fastmath=False, error_model="numpy")
def _group_maxima(keys, maxima):
    """Group g holds the elements g, g + groups, g + 2 groups ...: so the loop is a vector maximum.

    The rows are slices because an index sum would need numba's check for negative indices, which stops vectorising.
    """
    groups = maxima.size
    maxima[:] = keys[:groups]
    for row in range(1, GROUP):
        part = keys[row * groups : (row + 1) * groups]
        for g in range(groups):
            a = part[g]
            b = maxima[g]
            maxima[g] = a if a > b else b
    top = np.int32(0)
    for g in range(groups):
        top = maxima[g] if maxima[g] > top else top
    return top


@njit(cache=True, fastmath=False, error_model="numpy")
def scratch(chunk, k):
    """keys, maxima, open groups, candidate keys, candidate indices: for chunks of at most `chunk`."""
    groups = (chunk + GROUP - 1) // GROUP
    return (
        np.empty(groups * GROUP, np.int32),
        np.empty(groups, np.int32),
        np.empty(groups + 1, np.int64),
        np.empty(groups * GROUP + 1, np.int32),
        np.empty(groups * GROUP + 1, np.int64),
    )


@njit(cache=True, fastmath=False, error_model="numpy")
def load_keys(x, keys):
    raw = x.view(np.int32)
    for i in range(x.size):
        keys[i] = raw[i] & _ABS


@njit(cache=True, fastmath=False, error_model="numpy")
def select(n, k, room, indices):
    """Write the ascending indices (uint16 [k]) of the k largest of the first n keys; of equal ones, the first.

    Returns the largest key; if it is that of NaN or infinity, nothing is written.
    """
    all_keys, all_maxima, open_groups, candidates, places = room
    groups = (n + GROUP - 1) // GROUP
    keys = all_keys[: groups * GROUP]
    keys[n:] = -1
    maxima = all_maxima[:groups]
    top = _group_maxima(keys, maxima)
    if top >= INFINITY:
        return top
    above = np.int32(top + np.int32(1))
    bound = _bisect(maxima, k, np.int32(0), above, 8) if k <= groups else np.int32(0)
    n_open = 0
    for g in range(groups):
        open_groups[n_open] = g
        n_open += np.int64(maxima[g] >= bound)
    found = 0
    for row in range(GROUP):
        part = keys[row * groups : (row + 1) * groups]
        for a in range(n_open):
            g = open_groups[a]
            candidates[found] = part[g]
            places[found] = row * groups + g
            found += np.int64(part[g] >= bound)
    least = _bisect(candidates[:found], k, bound, above, 0)
    _write(candidates, places, found, least, k, indices)
    return top


@njit(cache=True, fastmath=False, error_model="numpy")
def _write(candidates, places, found, least, k, indices):
    ties = k
    for a in range(found):
        ties -= np.int64(candidates[a] > least)
    at = 0
    for a in range(found):
        if at == k:
            break
        tie = np.int64(candidates[a] == least) & np.int64(ties > 0)
        indices[at] = places[a]
        at += np.int64(candidates[a] > least) + tie
        ties -= tie
