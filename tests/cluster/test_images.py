"""The images of a commit, as Tekton's tasks make them in pods without root, beside what the Containerfile says."""

import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.cluster import images, node, openshift_ai
from tests.cluster.build import run
from tests.cluster.kubectl import Kubectl
from tests.cluster.project import Project
from tests.tekton.manifests import ROOT

# As much of the lock as a build of the Containerfile needs: uv, and packages that are quick to install.
FEW = ("jinja2", "markupsafe", "uv")
FOLDER = "opt/jukebox/pipeline/models/jukebox"
MOUNTS = ("etc/hosts", "etc/resolv.conf", "etc/trusted-ca")
SMALL = """[project]
name = "small"
version = "1"
requires-python = ">=3.11"
dependencies = ["jinja2"]
"""
TASKS = """
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata: {{ name: {name} }}
spec:
  workspaces:
    - name: source
      volumeClaimTemplate: {{ spec: {{ accessModes: [ReadWriteOnce], resources: {{ requests: {{ storage: 1Gi }} }} }} }}
  pipelineSpec:
    workspaces: [{{ name: source }}]
    results:
      - {{ name: image, value: $(tasks.build-image.results.image) }}
    tasks:
      - name: checkout
        taskRef: {{ name: checkout }}
        workspaces: [{{ name: source, subPath: source }}]
        params:
          - {{ name: pipeline-run, value: {name} }}
      - name: build-packages
        taskRef: {{ name: build-packages }}
        workspaces: [{{ name: source, subPath: source }}]
        params:
          - {{ name: base, value: $(tasks.checkout.results.base-image) }}
          - {{ name: image, value: $(tasks.checkout.results.dependencies) }}
          - {{ name: commit, value: $(tasks.checkout.results.commit) }}
      - name: build-image
        taskRef: {{ name: build-image }}
        runAfter: [build-packages]
        workspaces: [{{ name: source, subPath: source }}]
        params:
          - {{ name: dependencies, value: $(tasks.checkout.results.dependencies) }}
          - {{ name: image, value: $(tasks.checkout.results.image) }}
          - {{ name: commit, value: $(tasks.checkout.results.commit) }}
"""


@pytest.fixture
def small(project: Project, tmp_path: Path) -> Path:
    """A repository that is on the Git host, with what images are made of, and few packages."""
    folder = tmp_path / "small"
    for name in ("Containerfile", "pipeline", "scripts/install_packages.py", "manifests/settings/settings.yaml"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source, ignored = ROOT / name, shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, ignore=ignored) if source.is_dir() else shutil.copy(source, target)
    (folder / "pyproject.toml").write_text(SMALL)
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text())
    (folder / "requirements.lock").write_text("\n".join(each for each in entries if each.partition("==")[0] in FEW))
    git = ("git", "-C", folder, "-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    run("git", "init", "--quiet", "--initial-branch=main", folder)
    run(*git, "add", "--all")
    run(*git, "commit", "--quiet", "--message=Begin")
    address = project.git_host.repository("acme/small")
    run(*git, "push", "--quiet", "--force", address, "main", env=os.environ | project.git_host.environment)
    return folder


def test_an_appended_image_is_that_of_the_containerfile_file_by_file(
    project: Project, small: Path, tmp_path: Path
) -> None:
    name = f"images-{run('git', '-C', small, 'rev-parse', '--short=12', 'HEAD').strip()}"
    image = f"{node.REGISTRY}/small"
    images.forget("small", but="-")  # all of it is built here
    settings = project.settings | {"repository": project.settings["repository"].replace("/jukebox", "/small")}
    with elsewhere(project, settings | {"image": image}) as kubectl:
        kubectl.apply(TASKS.format(name=name))
        done = kubectl.finished(f"pipelinerun/{name}")
    assert done["status"]["conditions"][0]["reason"] == "Succeeded", done["status"]
    [reference] = [each["value"] for each in done["status"]["results"]]
    appended = Image.fetched(f"docker://{reference}", tmp_path / "appended", f"--src-cert-dir={node.TRUST}")
    built = Image.built(small, settings["base-image"], tmp_path / "built")
    assert appended.config == built.config
    # Where a builder mounts something of its own.
    ours, theirs = ({k: v for k, v in each.files.items() if k not in MOUNTS} for each in (appended, built))
    # The Containerfile cannot leave it out: the image of the tasks, which it describes as well, needs it.
    del theirs[f"{FOLDER}/sample.py"]
    assert ours.keys() == theirs.keys()
    assert {path: (ours[path], theirs[path]) for path in ours if ours[path] != theirs[path]} == {}
    assert f"{FOLDER}/__init__.py" in ours
    assert any(path.endswith("site-packages/jinja2/__init__.py") for path in ours)


@contextmanager
def elsewhere(project: Project, settings: dict[str, str]) -> Iterator[Kubectl]:
    """A namespace in which the project's tasks rely on other settings."""
    kubectl = project.kubectl.within("images")
    kubectl.create_namespace()
    openshift_ai.mark_namespace(kubectl)
    config = {"apiVersion": "v1", "kind": "ConfigMap"}
    given = {"settings.yaml": yaml.safe_dump({"data": settings | {"ci-namespace": kubectl.namespace}})}
    trusted = {"ca-bundle.crt": node.CA.read_text()}
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "records"}}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    tasks = project.ci.get("tasks.tekton.dev")["items"]
    kubectl.apply(
        {**config, "metadata": {"name": "jukebox-settings"}, "data": given},
        {**config, "metadata": {"name": "jukebox-trusted-ca"}, "data": trusted},
        {**config, "metadata": {"name": "jukebox-images"}},
        {**rbac, "kind": "RoleBinding", "roleRef": role, "subjects": [{"kind": "ServiceAccount", "name": "default"}]},
        *({**task, "metadata": {"name": task["metadata"]["name"]}} for task in tasks),
    )
    yield kubectl
    kubectl("delete", "namespace", kubectl.namespace, "--wait=false")


@dataclass(frozen=True)
class Image:
    """An image in a folder, as skopeo's ``dir:`` writes it: manifest.json, and blobs by their digest."""

    folder: Path

    @classmethod
    def fetched(cls, source: str, folder: Path, *options: str) -> "Image":
        """An image from elsewhere, with its layers unpacked to tar archives."""
        run("skopeo", "copy", "--quiet", "--dest-decompress", *options, source, f"dir:{folder}")
        return cls(folder)

    @classmethod
    def built(cls, checkout: Path, base: str, folder: Path) -> "Image":
        """What a person builds of a checkout."""
        arguments = (f"--build-arg=BASE_IMAGE={base}", f"--cert-dir={node.TRUST}", "--target=training")
        images.buildah("build", *images.HERE, *images.trusting(), *arguments, "--tag=full", str(checkout))
        images.buildah("push", "--quiet", "full", f"oci:{folder}.oci")
        images.buildah("rmi", "full")
        return cls.fetched(f"oci:{folder}.oci", folder)

    def _manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_bytes())  # type: ignore[no-any-return]

    def _blob(self, entry: dict[str, Any]) -> Path:
        return self.folder / str(entry["digest"]).removeprefix("sha256:")

    @property
    def config(self) -> dict[str, Any]:
        """What a container of it runs, and how."""
        config = json.loads(self._blob(self._manifest()["config"]).read_bytes())["config"]
        found = {key: config.get(key) for key in ("User", "WorkingDir", "Cmd", "Entrypoint")}
        return {**found, "Env": sorted(config.get("Env") or ())}

    @property
    def files(self) -> dict[str, tuple[Any, ...]]:
        """Kind, mode, owner, target and content of each file; times are not compared."""
        whole: dict[str, tuple[Any, ...]] = {}
        for layer in self._manifest()["layers"]:
            for path, entry in _entries(self._blob(layer)):
                if path.name == ".wh..wh..opq":
                    whole = {name: each for name, each in whole.items() if not name.startswith(f"{path.parent}/")}
                elif path.name.startswith(".wh."):
                    gone = str(path.with_name(path.name.removeprefix(".wh.")))
                    whole = {name: each for name, each in whole.items() if not f"{name}/".startswith(f"{gone}/")}
                else:
                    whole[str(path)] = entry
        return whole


def _entries(layer: Path) -> Iterator[tuple[PurePosixPath, tuple[Any, ...]]]:
    with tarfile.open(layer) as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isreg() else None
            content = hashlib.sha256(file.read()).hexdigest() if file else ""
            yield (
                PurePosixPath(entry.name),
                (entry.type, oct(entry.mode & 0o7777), entry.uid, entry.gid, entry.linkname, content),
            )
