"""Calls inside lowcomm/ of one plain fp32 sync of one island, as JSON. Run by benchmarks/core.py on any commit's tree.

    PYTHONPATH=TREE:TREE/kernels python -P benchmarks/core_probe.py TREE

It uses nothing but LocalSGD as a user's loop does. Comprehensions and generator expressions are no calls. -P, since
the folder of this file has a kernels.py.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import lowcomm as lc


def main() -> None:
    """The second sync is counted: the first one allocates."""
    package = Path(sys.argv[1]).resolve() / "lowcomm"
    model = nn.Linear(8, 8)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    sync = lc.LocalSGD(model, inner, every=10**9)
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        inline = frame.f_code.co_name in ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
        if event == "call" and not inline and Path(frame.f_code.co_filename).is_relative_to(package):
            calls[str(Path(frame.f_code.co_filename).relative_to(package.parent))] += 1

    for profiled in (False, True):
        model(torch.ones(1, 8)).sum().backward()
        inner.step()
        sys.setprofile(note if profiled else None)
        sync.sync((0,))
        sys.setprofile(None)
    entry = str(Path(sys.modules[lc.LocalSGD.__module__].__file__ or "").resolve().relative_to(package.parent))
    print(json.dumps({"calls": calls.total(), "files": len(calls), "entry": entry, "entry_calls": calls[entry]}))


if __name__ == "__main__":
    main()
