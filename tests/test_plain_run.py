"""A plain run loads no library that it does not use, and prints no line of another one's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import runs

UNUSED = (
    "deepspeed", "peft", "datasets", "bitsandbytes", "pytorch_lightning", "lightning", "flwr", "pytorch_optimizer",
    "pyarrow", "pandas", "sklearn", "matplotlib", "tensorflow", "jax", "grpc", "ray", "obstore",
)  # fmt: skip
CODE = """
import sys
from lowcomm.cli import main
code = main({arguments!r})
print("LOADED", sorted({{m.partition(".")[0] for m in sys.modules}} & set({unused!r})))
sys.exit(code)
"""


def test_a_plain_run_with_an_export_loads_and_prints_its_own_only(tmp_path: Path) -> None:
    recipe = runs.write_recipe(tmp_path, runs.write_corpus(tmp_path))
    arguments = ["train", f"{recipe}:local", "--islands", "1", "--steps", "4", "--checkpoint.export"]
    arguments += ["--transport", "collective", "--run-dir", str(tmp_path / "run")]
    code = CODE.format(arguments=arguments, unused=UNUSED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(runs.ROOT), str(runs.ROOT / "kernels")])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file()
    others = [line for line in done.stdout.splitlines() if "WARNING" in line or "Warning" in line]
    assert not others
