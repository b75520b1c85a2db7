"""The report on versions: complete, and without an import."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import torch

import otflow as of

ROOT = Path(__file__).parent.parent


def reported(capsys):
    of.show_versions()
    text = capsys.readouterr().out
    rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines() if line]
    return dict(rows)


def test_it_names_what_computes(capsys):
    found = reported(capsys)
    assert found["otflow"] == of.__version__
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["threads"].startswith(str(torch.get_num_threads()))
    assert found["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert {"numpy", "scipy", "pot", "geomloss", "CUDA", "GPUs", "system"} <= set(found)


def test_it_names_every_requirement_of_the_core_and_of_the_extras(capsys):
    found = reported(capsys)
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    for_users = set(extras) - {"test", "mutants", "docs", "lint"}
    lines = project["dependencies"] + [r for e in for_users for r in extras[e]]
    names = {re.split(r"[^\w.-]", line)[0] for line in lines} - {"otflow"}
    assert names <= set(found)


def test_what_is_missing_is_said(capsys, monkeypatch):
    def version(name):
        if name == "pandas":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("otflow._versions.metadata.version", version)
    assert reported(capsys)["pandas"] == "not installed"


def test_nothing_is_imported_for_it():
    code = (
        "import sys, otflow; before = set(sys.modules); otflow.show_versions()\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'pandas', 'xarray', 'matplotlib', 'tqdm', 'ot'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_library_is_silent_by_default():
    handlers = logging.getLogger("otflow").handlers
    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)
