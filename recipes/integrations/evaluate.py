"""Evaluates each new version of a run that is followed: one line of JSON per version, and what the model goes on with.

lowcomm follow URL served &
python recipes/integrations/evaluate.py served --text held-out.txt

The model is loaded from one file that is replaced by a rename: it is of one version, whatever comes meanwhile. What is
served by a web server of your own reads the directory in the same way, and lets go of the old model afterwards.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOOK_S = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Until the run's last version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="DIR of `lowcomm follow URL DIR`")
    parser.add_argument("--text", type=Path, required=True, help="held-out text, UTF-8")
    parser.add_argument("--prompt", default="def ", help="what the model goes on with")
    parser.add_argument("--tokens", type=int, default=512, help="of the text, at most")
    options = parser.parse_args(arguments)
    seen: int | None = None
    while True:
        found = said(options.directory)
        if found is None or found["version"] == seen:
            time.sleep(LOOK_S)
            continue
        seen = int(found["version"])
        print(json.dumps({"version": seen, **evaluated(options.directory, options)}), flush=True)
        if found["last"]:
            return


def said(directory: Path) -> dict[str, int | bool] | None:
    """What the directory says that it holds; None: nothing yet."""
    path = directory / "version.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@torch.inference_mode()
def evaluated(directory: Path, options: argparse.Namespace) -> dict[str, float | str]:
    """Nats per token of the text, and a few tokens after the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, trust_remote_code=False).eval()
    text = tokenizer(options.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, : options.tokens]
    loss = float(model(input_ids=text, labels=text).loss)
    start = tokenizer(options.prompt, return_tensors="pt")
    out = cast(Any, model).generate(**start, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return {"loss": loss, "says": tokenizer.decode(out[0])}


if __name__ == "__main__":
    main()
