"""Which folder may import which: the rules are in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_folders_import_only_what_they_may() -> None:
    done = run_python("from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))")
    assert done.returncode == 0, done.stdout + done.stderr


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
    done = run_python(code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run it in the checkout, in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True, text=True)
