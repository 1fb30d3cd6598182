"""A bench command on a machine that lacks some packages and reaches no registry.

python bench/bare.py WHEELS gpu [OPTIONS]

Installs the wheels of a folder beside what is there, in a temporary folder, and runs ``python -m
bench`` with the rest of the arguments. This file itself needs nothing but Python and pip.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(wheels: str, *command: str) -> int:
    """Run the command; returns its exit code."""
    found = sorted(map(str, Path(wheels).glob("*.whl")))
    if not found:
        raise SystemExit(f"{wheels}: no wheels in it; give a folder of them, then a command")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", folder, *found], check=True)
        paths = [folder, os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        bench = [sys.executable, "-m", "bench", *command]
        checkout = Path(__file__).resolve().parents[1]
        return subprocess.run(bench, check=False, env=environment, cwd=checkout).returncode


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    sys.exit(main(*sys.argv[1:]))
