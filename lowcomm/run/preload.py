"""Imports what training needs at once, without the collector, which would look at each new object some ten times."""

from __future__ import annotations

import gc
import importlib
import sys

NEEDED = ("lowcomm.trainer", "transformers.models.llama.modeling_llama", "torch._dynamo")
"""What every process that trains imports sooner or later: 4.2 s of a core, 3.5 s without the collector."""


def preload() -> None:
    """Import it. Starts no thread, and touches no device; does nothing where it has been done.

    Nothing that exists by then is looked at by the collector again: in a copy of this process it would read, and so
    copy, all of it once, a quarter of a second in the midst of training.
    """
    if all(name in sys.modules for name in NEEDED):
        return
    gc.disable()
    try:
        for name in NEEDED:
            importlib.import_module(name)
        gc.freeze()
    finally:
        gc.enable()
