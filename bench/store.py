"""Measurements that survive an interruption, and what they depend on: machine, releases, source.

A measurement is a row of a file of JSON lines, found again by its key: what was measured (the
digest of the image's pixels, codec, setting) and with what. A run that was stopped goes on where it
was; what has changed since is measured anew.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

import diffcodec

Row = dict[str, Any]

PACKAGES = ("diffcodec", "torch", "numpy", "pillow", "imagecodecs", "torchmetrics", "constriction")
MAXRSS_PER_MB = 2**20 if platform.system() == "Darwin" else 2**10
SMALL_PARENT = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
# Folders on which neither files nor their bound depend; a new one counts until it is here.
NOT_CODING = {"cli", "planning", "training", "viewing"}


class Store:
    """Rows by key; see the module's text."""

    def __init__(self, path: Path):
        self.path = path
        self._rows: dict[str, Row] = {}
        text = path.read_text() if path.exists() else ""
        self._begin = "" if text.endswith("\n") or not text else "\n"  # of what is appended first
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line at which a run was stopped
                continue
            self._rows[_canonical(entry["key"])] = entry["row"]

    def get(self, key: Row, compute: Callable[[], Row]) -> Row:
        """The row of a key, from the file or computed and appended to it."""
        name = _canonical(key)
        if name not in self._rows:
            row = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as f:
                f.write(self._begin + json.dumps({"key": key, "row": row}) + "\n")
            self._begin = ""
            self._rows[name] = row
        return self._rows[name]


def _canonical(key: Row) -> str:
    return json.dumps(key, sort_keys=True)


def pixels_digest(image: Image.Image) -> str:
    """The digest of an image's mode, size and samples."""
    text = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(text + image.tobytes()).hexdigest()[:16]


def coding_sources() -> dict[str, Path]:
    """The package's modules that files, the times of coding and the bound depend on, by place."""
    folder = Path(diffcodec.__file__).parent
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*.py"))}
    return {p.as_posix(): path for p, path in found.items() if p.parts[0] not in NOT_CODING}


@cache
def source_digest() -> str:
    """The digest of :func:`coding_sources`."""
    digest = hashlib.sha256()
    for place, path in coding_sources().items():
        digest.update(place.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def cpu() -> str:
    """The processor's name, and how many of its cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = names[0].partition(":")[2].strip() if names else name
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return f"{name}, {cores} core{'s' if cores > 1 else ''}"


def environment() -> Row:
    """What the results of this run depend on, and the largest memory it has used so far."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": cpu(),
        "versions": versions,
        "source": source_digest(),
        "peak_memory_mb": peak_memory_mb(),
    }


def peak_memory_mb() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // MAXRSS_PER_MB


def child_peak_mb(*arguments: str) -> int:
    """The largest resident size of another Python process, which must succeed.

    Linux counts to a process what its parent had when it started it: hence a small one between.

    Raises:
        click.ClickException: if it fails.
    """
    command = [sys.executable, "-c", SMALL_PARENT, sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise click.ClickException(f"{' '.join(arguments)} failed: {lines[-1]}")
    return int(done.stdout.split()[-1]) // MAXRSS_PER_MB


def write_json(path: Path, data: Any) -> None:
    """Write readable JSON, of NumPy's numbers too; infinity as Python's ``json`` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not for JSON")
