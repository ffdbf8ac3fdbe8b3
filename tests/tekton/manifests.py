"""The resources of ``tekton/`` as a fork applies them: built by Kustomize with settings that are filled in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
FILLED = {"<ORGANISATION>": "acme", "<REGISTRY>": "registry.example.com", "<BUCKET>": "data"}
Resource = dict[str, Any]


def kubectl() -> str | None:
    """The ``kubectl`` of the environment of these tests, or of the machine."""
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which("kubectl", path=folders)


def build(program: str, folder: Path, namespace: str = "ada-jukebox") -> list[Resource]:
    """Copy ``tekton/`` and the settings to ``folder``, fill the settings in, and return what Kustomize builds."""
    shutil.copytree(ROOT / "tekton", folder / "tekton")
    (folder / "manifests").mkdir()
    for name in ("manifests/settings.yaml", "tekton/settings.yaml"):
        text = (ROOT / name).read_text()
        for placeholder, value in {**FILLED, "<USER_NAME>-jukebox": namespace}.items():
            text = text.replace(placeholder, value)
        (folder / name).write_text(text)
    command = [program, "kustomize", "--load-restrictor=LoadRestrictionsNone", str(folder / "tekton")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return list(yaml.safe_load_all(done.stdout))
