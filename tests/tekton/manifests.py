"""The resources of ``tekton/`` as a fork applies them: built by Kustomize with settings that are filled in.

With them the accounts that they run as, and their rights.
"""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.settings_file import SETTINGS_FILE

ROOT = Path(__file__).parents[2]
ADDRESS, REPOSITORY = "https://github.com/<ORGANISATION>/jukebox", "https://github.com/acme/jukebox"
FILLED = {"<ORGANISATION>": "acme", "<REGISTRY>": "registry.example.com", "<BUCKET>": "data"}
Resource = dict[str, Any]


def kubectl() -> str | None:
    """The ``kubectl`` of the environment of these tests, or of the machine."""
    folders = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which("kubectl", path=folders)


def build(
    program: str,
    folder: Path,
    namespace: str = "ada-jukebox",
    host: str = "github",
    *,
    repository: str = REPOSITORY,
    **more: str,
) -> list[Resource]:
    """Copy ``tekton/``, the accounts and the settings to ``folder``, fill the settings in, and return what is built.

    Other settings may be given by their names, with underscores.
    """
    for part in ("tekton", "argocd", "manifests/settings", "manifests/replacements"):
        shutil.copytree(ROOT / part, folder / part)
    overlay = {"resources": ["tekton"], "components": ["manifests/replacements"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    file = folder / "manifests" / "settings" / "settings.yaml"
    text = SETTINGS_FILE.read_text()
    filled = {ADDRESS: repository, **FILLED, "<USER_NAME>-jukebox": namespace, "git-host: github": f"git-host: {host}"}
    for placeholder, value in filled.items():
        text = text.replace(placeholder, value)
    document = yaml.safe_load(text)
    document["data"] |= {name.replace("_", "-"): value for name, value in more.items()}
    file.write_text(yaml.safe_dump(document))
    resources = [_kustomize(program, path) for path in (folder, folder / "argocd/tenant/openshift-ai")]
    platform = _kustomize(program, folder / "argocd/platform/argo-cd")
    beyond = [resource for resource in platform if resource["kind"] in ("ClusterRole", "ClusterRoleBinding")]
    return [*itertools.chain(*resources), *beyond]


def _kustomize(program: str, folder: Path) -> list[Resource]:
    command = [program, "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return list(yaml.safe_load_all(done.stdout))
