"""Which folder may import which: the rules are in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def test_folders_import_only_what_they_may(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0, capsys.readouterr().out


def test_no_cluster_client_is_loaded_with_what_the_image_holds() -> None:
    """Neither by a name that is made when it runs, which no rule sees."""
    folders = [ROOT / "pipeline" / name for name in ("core", "steps", "models")]
    files = [file.relative_to(ROOT) for folder in folders for file in folder.rglob("*.py")]
    modules = [".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(*(name for name in ("kubernetes", "kfp", "scripts") if name in sys.modules))
"""
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, env={**os.environ}, check=True, capture_output=True, text=True)
    assert found.stdout.split() == []
