"""``manifests/``, ``tekton/`` and ``argocd/`` as a fork builds them: by Kustomize, with settings filled in."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scripts.pins import PIN, Pin, render
from tests.settings_file import SETTINGS_FILE
from tests.tekton.manifests import ROOT, Resource

PARTS = ("manifests", "tekton", "argocd")
PLATFORMS = {"openshift-ai": "openshift-gitops", "kubeflow": "argo-cd"}
ADMISSION = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
# What bootstrap applies, by folder.
BOOTSTRAP = (
    *(f"argocd/platform/{flavour}" for flavour in PLATFORMS.values()),
    *(f"argocd/tenant/{platform}" for platform in PLATFORMS),
    *("argocd/operators", "argocd/health-checks"),
)
OVERLAYS = tuple(f"{platform}/{environment}" for platform in PLATFORMS for environment in ("dev", "prod"))
# Those that an overlay may name; production is what makes a prod of one.
COMPONENTS = tuple(
    sorted(path.name for path in (ROOT / "manifests" / "components").iterdir() if path.name != "production")
)
PINNED = Pin("jukebox", 1, "0123456789abcdef" * 4)
PLACEHOLDER = re.compile(r"<[A-Z_0-9]+>")
FILLED = {
    "<ORGANISATION>": "acme",
    "<USER_NAME>": "ada",
    "<CLUSTER_DOMAIN>": "apps.example.com",
    "<GATEWAY>": "front",
    "<GATEWAY_NAMESPACE>": "edge",
    "<REGISTRY>": "registry.example.com",
    "<DIGEST>": "0123456789abcdef" * 4,
    "<BUCKET>": "cars",
    "<STORAGE_CLASS>": "shared",
    "<S3_HOST>": "s3.example.com",
    "<DATABASE_HOST>": "mysql.example.com",
    "<DATABASE_USER>": "pipelines",
    "<VAULT_SERVER>": "https://vault.example.com",
    "<CLUSTER_QUEUE>": "everybody",
    "<BUCKET_CLASS>": "buckets",
}


def read_settings(folder: Path | None = None) -> dict[str, str]:
    """The settings as they are in a copy of the repository, or as the product comes with them."""
    file = folder / "manifests/settings/settings.yaml" if folder else SETTINGS_FILE
    data = yaml.safe_load(file.read_text())["data"]
    return {key: str(value) for key, value in data.items()}


def copy(folder: Path, settings: Mapping[str, str] | None = None) -> Path:
    """Copy what Kustomize reads to ``folder``, fill the placeholders in and change the settings that are given.

    The settings are those that the product comes with, not the fork's; production serves ``PINNED``.
    """
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part)
    path = folder / "manifests/settings/settings.yaml"
    document = yaml.safe_load(PLACEHOLDER.sub(lambda found: FILLED.get(found[0], found[0]), SETTINGS_FILE.read_text()))
    document["data"] |= settings or {}
    path.write_text(yaml.safe_dump(document))
    (folder / PIN).write_text(render(PINNED))
    return folder


def build(program: str, folder: Path) -> list[Resource]:
    """What ``kubectl kustomize`` makes of a folder, under the load restrictor that it has by default."""
    done = subprocess.run([program, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert not done.returncode, f"{folder}: {done.stderr}"
    return [resource for resource in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if resource]


def with_components(folder: Path, overlay: str, components: Sequence[str]) -> Path:
    """Make an overlay that is the given one with components, as a fork does it: a line each, before the last."""
    platform, environment = overlay.split("/")
    path = folder / "manifests/overlays" / platform / "-".join([environment, *components])
    kustomization = yaml.safe_load((folder / "manifests/overlays" / overlay / "kustomization.yaml").read_text())
    *before, replacements = kustomization["components"]
    kustomization["components"] = [*before, *(f"../../../components/{name}" for name in components), replacements]
    path.mkdir(exist_ok=True)
    (path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return path


def admission(program: str, folder: Path) -> list[Resource]:
    """The admission policies that bootstrap applies, and what binds them."""
    return of_kind(build(program, folder / "argocd" / "platform" / "argo-cd"), *ADMISSION)


def with_rights(built: Mapping[str, list[Resource]], overlay: str) -> list[Resource]:
    """An overlay, with the accounts and rights that bootstrap gives to what it holds.

    Args:
        built: each of ``BOOTSTRAP`` and of ``OVERLAYS``.
    """
    platform, _, _ = overlay.partition("/")
    beyond = of_kind(built[f"argocd/platform/{PLATFORMS[platform]}"], "ClusterRole", "ClusterRoleBinding")
    return [*built[overlay], *built[f"argocd/tenant/{platform}"], *beyond]


def of_kind(resources: list[Resource], *kinds: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] in kinds]


def walk(value: Any) -> list[dict[str, Any]]:
    """All mappings in a document."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*([value] if isinstance(value, dict) else []), *(found for one in inner for found in walk(one))]
