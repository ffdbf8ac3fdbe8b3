"""The images of a commit: what names them, what they are made of, and what a registry's answers mean."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from tenacity import wait_none

from pipeline.core.errors import BuildFailed, JukeboxError, RegistryRefuses, SettingsInvalid
from pipeline.core.trusted_ca import trust
from scripts import (
    fetch_image,
    find_images,
    image_records,
    install_packages,
    pack_image,
    push_image,
    read_lock,
    tag_images,
)
from scripts.clients import kubernetes_api
from scripts.clients.kubernetes_api import Cluster
from scripts.clients.registry import Registry, repository_of
from scripts.containerfile import Containerfile
from scripts.find_images import Commit
from scripts.layout import LIMIT, Layout
from tests.git_server import IDENTITY
from tests.http_server import Answer, HttpServer, serve_http
from tests.kfp.world import World
from tests.registry_server import program, serve_registry
from tests.settings_file import SETTINGS_FILE, use_settings

pytest_plugins = ("tests.kfp.fixtures",)
ROOT = Path(__file__).parents[2]
INPUTS = ("Containerfile", "requirements.lock", "pyproject.toml", "pipeline", "manifests/settings", "scripts")
BASE = "example.com/python@sha256:" + "0" * 64
needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed; the cluster tier has it")
needs_registry = pytest.mark.skipif(
    not (shutil.which("skopeo") and program()),
    reason="skopeo or docker-registry is not installed; the cluster tier has them",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with what the images of this repository are made of, and one file more."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in INPUTS:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(
            source, folder / name
        )
    shutil.copy(SETTINGS_FILE, folder / "manifests" / "settings" / "settings.yaml")
    (folder / "README.md").write_text("Read me")
    commit(folder, "init", "--quiet")
    return folder


def commit(folder: Path, *first: str) -> None:
    for words in (first, ("add", "--all"), ("commit", "--quiet", "--message", "Change")):
        if words:
            subprocess.run(["git", *words], cwd=folder, env={**os.environ, **IDENTITY}, check=True)


def change(folder: Path, name: str, old: str = "", new: str = "\n# changed\n") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1) if old else text + new)
    commit(folder)


def keys(folder: Path, base: str = BASE) -> tuple[str, str, str]:
    """Of packages, training image and the tasks' image."""
    made = Commit(folder)
    return made.packages_key(base), made.image_key(base), made.lock_key(base)


def test_each_input_changes_what_is_made_of_it_and_nothing_else(checkout: Path) -> None:
    dependency = '    "boto3=='
    for name, old, new, expected in (
        ("README.md", "", "more", (False, False, False)),
        ("pyproject.toml", "line-length = 120", "line-length = 119", (False, False, False)),
        ("pyproject.toml", '"PERF", ', "", (False, False, False)),
        ("scripts/predict.py", "does not exist: ", "is not there; ", (False, False, False)),
        ("manifests/settings/settings.yaml", 'train-cpu: "2"', 'train-cpu: "4"', (False, False, False)),
        ("pipeline/components.py", "", "\n# changed\n", (False, False, False)),
        ("pipeline/models/jukebox/sample.py", "", "\n# changed\n", (False, False, False)),
        ("pipeline/models/jukebox/tables.py", "", "\n# changed\n", (False, True, False)),
        ("pipeline/steps/publish_model.py", "", "\n# changed\n", (False, True, False)),
        ("Containerfile", "WORKDIR /tmp\nCOPY", "WORKDIR /\nCOPY", (False, True, False)),
        ("requirements.lock", "", "\n# changed\n", (True, True, True)),
        ("pyproject.toml", dependency, '    "six==1.0",\n' + dependency, (True, True, False)),
    ):
        before = keys(checkout)
        change(checkout, name, old, new)
        after = keys(checkout)
        assert tuple(one != other for one, other in zip(before, after, strict=True)) == expected, name
    before = keys(checkout)
    other = BASE.replace("sha256:0", "sha256:1")
    assert not set(before) & set(keys(checkout, other)), "the digest of the base is in each key"
    assert keys(checkout, BASE.replace("python", "elsewhere/python")) == before
    # Nor does it matter what is no part of the commit.
    (checkout / "requirements.lock").write_text("")
    (checkout / "pipeline" / "core" / "left-by-a-test").write_text("")
    assert keys(checkout.rename(checkout.with_name("elsewhere"))) == before
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in before)


def test_what_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="git cat-file failed in"):
        keys(tmp_path)


def test_the_containerfile_says_what_the_training_image_is() -> None:
    found = Containerfile((ROOT / "Containerfile").read_bytes(), "my_model")
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", found.base)
    parts = ("__init__.py", "core", "steps", "models/__init__.py", "models/my_model")
    inside = PurePosixPath("/opt/jukebox/pipeline")
    assert found.copies == [(PurePosixPath("pipeline", part), inside / part) for part in parts]
    config = found.config({"PATH": "/usr/bin", "LANG": "C.UTF-8"})
    assert (config["User"], config["WorkingDir"]) == ("1001:0", "/tmp")
    assert {"PATH=/opt/venv/bin:/usr/bin", "LANG=C.UTF-8", "PYTHONPATH=/opt/jukebox"} < set(config["Env"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("WORKDIR /tmp\nCOPY", "RUN apt-get install libgomp1\nCOPY", "RUN apt-get install libgomp1"),
        ("ARG MODEL=jukebox", "ARG OTHER=1", "ARG OTHER=1"),
        ("COPY pipeline/core /", "COPY --chown=1:1 pipeline/core /", "COPY --chown=1:1 pipeline/core /opt/jukebox"),
        ("COPY pipeline/core /", "COPY pipeline/core scripts /", "COPY pipeline/core scripts /opt"),
        ("# The layer of code", "RUN rm -r /opt/venv\n# The", "rm -r /opt/venv"),
        ("AS dependencies", "AS packages", "expected ('dependencies', 'training')"),
        ("FROM dependencies AS training", "RUN install_packages.py\nFROM dependencies AS training", "no packages"),
    ],
)
def test_what_a_cluster_would_not_do_of_the_containerfile_is_refused(old: str, new: str, message: str) -> None:
    text = (ROOT / "Containerfile").read_text()
    assert old in text
    with pytest.raises(SettingsInvalid) as error:
        Containerfile(text.replace(old, new, 1).encode(), "jukebox")
    assert message in str(error.value)


@pytest.fixture
def base(tmp_path: Path) -> Layout:
    """An image of one layer, with a variable and a user."""
    return image(tmp_path / "base", Env=["PATH=/usr/bin", "PYTHON_VERSION=3.12.1"], User="root")


def image(folder: Path, **config: Any) -> Layout:
    layout = Layout(folder)
    layer = layout.add(b"layer")
    whole = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    content = json.dumps({**whole, "config": config}).encode()
    kind = "application/vnd.oci.image"
    layers = [{"mediaType": f"{kind}.layer.v1.tar", **layer}]
    entry = {"mediaType": f"{kind}.config.v1+json", **layout.add(content)}
    manifest = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json", "config": entry, "layers": layers}
    layout.write(json.dumps(manifest).encode(), content)
    return layout


def packed(layout: Layout, folder: Path) -> dict[str, tarfile.TarInfo]:
    """The entries of an image's last layer, which is unpacked to ``folder``."""
    manifest, _ = layout.read()
    blob = layout.folder / "blobs" / "sha256" / manifest["layers"][-1]["digest"].removeprefix("sha256:")
    with tarfile.open(blob) as tar:
        tar.extractall(folder, filter="fully_trusted")
        return {member.name: member for member in tar}


def test_a_commit_becomes_a_layer_of_what_it_holds(checkout: Path, base: Layout, tmp_path: Path) -> None:
    (checkout / "pipeline" / "core" / "tool").write_text("#!/bin/sh\n")
    (checkout / "pipeline" / "core" / "tool").chmod(0o700)
    commit(checkout)
    before = keys(checkout)
    (checkout / "pipeline" / "models" / "other").mkdir()
    (checkout / "pipeline" / "models" / "other" / "__init__.py").write_text("")
    commit(checkout)
    assert keys(checkout) == before, "another model makes no other image"
    (checkout / "pipeline" / "core" / "left-by-a-test").write_text("")
    pack_image.pack_commit(base, Commit(checkout))
    entries = packed(base, tmp_path / "unpacked")
    models = ["pipeline/models/__init__.py", "pipeline/models/jukebox"]
    listing = ["git", "ls-files", "pipeline/__init__.py", "pipeline/core", *models, "pipeline/steps"]
    wanted = subprocess.run(listing, cwd=checkout, check=True, capture_output=True, text=True).stdout.split()
    wanted.remove("pipeline/models/jukebox/sample.py")
    assert sorted(name for name, entry in entries.items() if entry.isfile()) == [
        f"opt/jukebox/{name}" for name in wanted
    ]
    for name in wanted:
        assert (tmp_path / "unpacked" / "opt" / "jukebox" / name).read_bytes() == (checkout / name).read_bytes()
    assert {entry.mode for entry in entries.values() if entry.isdir()} == {0o755}
    assert {name for name, entry in entries.items() if entry.isfile() and entry.mode != 0o644} == {
        "opt/jukebox/pipeline/core/tool"
    }
    assert {(entry.uid, entry.gid, entry.uname, entry.mtime) for entry in entries.values()} == {(0, 0, "", 0)}
    manifest, config = base.read()
    assert len(manifest["layers"]) == len(config["rootfs"]["diff_ids"]) == 2
    assert config["config"]["User"] == "1001:0"
    assert "PATH=/opt/venv/bin:/usr/bin" in config["config"]["Env"]


def test_equal_content_has_an_equal_digest(checkout: Path, tmp_path: Path) -> None:
    """Whatever the commit is called, whoever made it, and whenever."""
    digests = set()
    for name in ("one", "two"):
        digests.add(pack_image.pack_commit(image(tmp_path / name), Commit(checkout)))
        change(checkout, "README.md")
    assert len(digests) == 1
    change(checkout, "pipeline/core/errors.py")
    assert pack_image.pack_commit(image(tmp_path / "three"), Commit(checkout)) not in digests


def link(folder: Path) -> None:
    (folder / "pipeline" / "core" / "link").symlink_to("/etc/passwd")


def data(folder: Path) -> None:
    (folder / "pipeline" / "core" / "cars.parquet").write_bytes(bytes(LIMIT))


def nothing(folder: Path) -> None:
    shutil.rmtree(folder / "pipeline")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(link, "is neither a file nor a folder"), (data, "data does not belong"), (nothing, "the commit has no pipeline")],
)
def test_what_does_not_belong_into_an_image_is_refused(
    checkout: Path, base: Layout, spoil: Callable[[Path], None], message: str
) -> None:
    before = base.read()
    spoil(checkout)
    commit(checkout)
    with pytest.raises(JukeboxError, match=message):
        pack_image.pack_commit(base, Commit(checkout))
    assert base.read() == before


def test_a_folder_of_packages_becomes_a_layer_and_hides_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "packages"
    (folder / "lib" / "one").mkdir(parents=True)
    (folder / "lib" / "one").chmod(0o2770)  # as a volume's groups make it
    (folder / "lib" / "one" / "a.py").write_text("a")
    (folder / "lib" / "one" / "a.py").chmod(0o660)
    (folder / "bin").mkdir()
    (folder / "bin" / "tool").write_text("tool")
    (folder / "bin" / "tool").chmod(0o770)
    (folder / "bin" / "python3").symlink_to("/usr/local/bin/python3")
    digests = []
    for name in ("one", "two"):
        layout = image(tmp_path / name, Env=[f"PYTHON_VERSION={sys.version_info[0]}.{sys.version_info[1]}.99"])
        digests.append(pack_image.pack_folder(layout, folder, Path("/opt/venv")))
    assert digests[0] == digests[1]
    entries = packed(layout, tmp_path / "unpacked")
    assert entries["opt/venv/bin/python3"].linkname == "/usr/local/bin/python3"
    modes = {name: oct(entry.mode) for name, entry in entries.items() if not entry.issym()}
    assert modes == {
        "opt": "0o755",
        "opt/venv": "0o755",
        "opt/venv/.wh..wh..opq": "0o644",
        "opt/venv/bin": "0o755",
        "opt/venv/bin/tool": "0o755",
        "opt/venv/lib": "0o755",
        "opt/venv/lib/one": "0o755",
        "opt/venv/lib/one/a.py": "0o644",
    }


def test_packages_of_another_python_than_the_base_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    with pytest.raises(BuildFailed, match=r"The base image has Python 3\.9, the packages are for Python 3\."):
        pack_image.pack_folder(
            image(tmp_path / "base", Env=["PYTHON_VERSION=3.9.1"]), tmp_path / "packages", Path("/opt/venv")
        )


@pytest.fixture
def locked(checkout: Path, tmp_path: Path) -> Path:
    """The checkout with a lock of one package, and an index that has it."""
    wheel = tmp_path / "index" / "tiny" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("tiny.py", "ANSWER = 42\n")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>')
    (checkout / "requirements.lock").write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    (checkout / "pyproject.toml").write_text('[project]\nname = "fork"\nversion = "1"\ndependencies = ["tiny==1.0"]\n')
    commit(checkout)
    return checkout


def installed(locked: Path, folder: Path, option: str) -> subprocess.CompletedProcess[str]:
    """What Tekton and the Containerfile run in the checkout; uv is that of the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = [sys.executable, install_packages.__file__, str(folder), f"--index={locked.parent.as_uri()}/index"]
    return subprocess.run(
        [*script, option], cwd=locked, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("option", ["--training", "--all"])
def test_what_the_lock_names_is_installed_and_compiled(locked: Path, tmp_path: Path, option: str) -> None:
    folder = tmp_path / "venv"
    done = installed(locked, folder, option)
    assert done.returncode == 0, done.stderr
    python = folder / "bin" / "python3"
    answer = subprocess.run([python, "-c", "import tiny; print(tiny.ANSWER)"], capture_output=True, check=True)
    assert answer.stdout == b"42\n"
    [compiled] = folder.rglob("tiny.*.pyc")
    assert compiled.read_bytes()[4:8] == b"\x01\0\0\0", "what it was compiled of is not looked at again"
    assert (folder / "bin" / "jukebox").exists() == (option == "--all")
    if option == "--all":
        text = (folder / "bin" / "jukebox").read_text()
        assert text.startswith(f"#!{folder}/bin/python3\n")
        [path] = folder.rglob("jukebox.pth")
        assert path.read_text() == "/opt/jukebox\n"


def test_what_installs_them_finds_all_of_itself_where_the_containerfile_puts_it(locked: Path, tmp_path: Path) -> None:
    for line in (ROOT / "Containerfile").read_text().splitlines():
        if line.startswith("COPY ") and "/build/" in line:
            *sources, target = line.split()[1:]
            folder = tmp_path / target.strip("/")
            folder.mkdir(exist_ok=True)
            for source in sources:
                # The lock is that of one package.
                shutil.copy((locked if (locked / source).is_file() else ROOT) / source, folder)
    # Of the site's packages, where this repository is one, the base image has none.
    script = [sys.executable, "-S", "install_packages.py", str(tmp_path / "venv"), "--training"]
    index = f"--index={locked.parent.as_uri()}/index"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([*script, index], cwd=tmp_path / "build", env=environment, check=True)


@pytest.mark.parametrize("option", ["--training", "--all"])
def test_a_package_with_other_content_than_the_lock_says_is_refused(locked: Path, tmp_path: Path, option: str) -> None:
    lock = locked / "requirements.lock"
    lock.write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
    done = installed(locked, tmp_path / "venv", option)
    assert done.returncode == 1
    assert "Hash mismatch for `tiny==1.0`" in done.stderr
    assert "The packages cannot be installed: uv ended with" in done.stderr


@pytest.mark.parametrize("option", ["--training", "--all"])
def test_an_installation_runs_nothing_of_a_package(locked: Path, tmp_path: Path, option: str) -> None:
    """Neither what builds it nor what it has for the start of Python; nor what uv's settings beside the lock say."""
    marker = tmp_path / "executed"
    run = f"import pathlib; pathlib.Path({str(marker)!r}).write_text('')"
    wheel = tmp_path / "index" / "tiny" / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("tiny.pth", run + "\n")
        file.writestr("sitecustomize.py", run + "\n")
    lock_file(locked, tiny=wheel)
    done = installed(locked, tmp_path / "venv", option)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    subprocess.run([tmp_path / "venv/bin/python3", "-c", ""], check=True)
    assert marker.exists()  # so whoever ran the new Python would have
    marker.unlink()

    source = tmp_path / "index" / "built" / "built-1.0.tar.gz"
    source.parent.mkdir()
    with tarfile.open(source, "w:gz") as tar:
        for name, text in {"setup.py": run, "PKG-INFO": "Metadata-Version: 2.1\nName: built\nVersion: 1.0\n"}.items():
            entry = tarfile.TarInfo(f"built-1.0/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    lock_file(locked, tiny=wheel, built=source)
    (locked / "uv.toml").write_text("[pip]\nno-build = false\nonly-binary = []\n")
    done = installed(locked, tmp_path / "venv", option)
    assert done.returncode == 1
    assert "disabled" in done.stderr
    assert not marker.exists()


def lock_file(folder: Path, **files: Path) -> None:
    """Lock these packages of the index, and want all of them."""
    lines, names = [], []
    for name, file in files.items():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (file.parent / "index.html").write_text(f'<a href="{file.name}#sha256={digest}">{file.name}</a>')
        lines.append(f"{name}==1.0 --hash=sha256:{digest}\n")
        names.append(f"{name}==1.0")
    (folder / "requirements.lock").write_text("".join(lines))
    (folder / "pyproject.toml").write_text(f'[project]\nname = "fork"\nversion = "1"\ndependencies = {names!r}\n')
    commit(folder)


def test_what_is_installed_is_that_of_the_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = "https://packages.example.com/simple"
    use_settings(monkeypatch, tmp_path / "settings.yaml", package_index=index)
    (checkout / "requirements.lock").write_text("changed")
    read_lock.command(tmp_path / "lock", folder=checkout)
    assert (tmp_path / "lock/requirements.lock").read_bytes() == (ROOT / "requirements.lock").read_bytes()
    projects = (tomllib.loads(Path(each, "pyproject.toml").read_text()) for each in (tmp_path / "lock", ROOT))
    one, other = (project["project"]["dependencies"] for project in projects)
    assert one == other
    assert (tmp_path / "lock/package-index").read_text() == index


HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("requirements.lock", "-e .", "holds '-e .', expected only name==version with hashes"),
        ("requirements.lock", f"--index-url https://example.com/\ntiny==1.0 {HASH}", "holds '--index-url"),
        ("requirements.lock", f"tiny @ https://example.com/tiny.tar.gz {HASH}", "holds 'tiny @"),
        ("requirements.lock", f"./tiny {HASH}", "holds './tiny"),
        ("requirements.lock", "tiny==1.0", "holds 'tiny==1.0'"),
        ("requirements.lock", f"tiny==1.0 {HASH} -r other.txt", "holds 'tiny"),
        ("requirements.lock", f"kfp-server-api==2.17.3 {HASH}", "has another kfp-server-api than the image of the"),
        ("requirements.lock", f"KFP_Server.api==9 \\\n  {HASH}", "has another kfp-server-api than the image of the"),
        ("pyproject.toml", '[project]\ndependencies = ["tiny @ git+https://example.com/tiny"]', "requires 'tiny @"),
        ("pyproject.toml", '[project]\ndependencies = ["-e ."]', "requires '-e .'"),
        ("pyproject.toml", '[project]\ndependencies = ["tiny==1\\n-e ."]', "requires 'tiny"),
        ("pyproject.toml", '[project]\ndynamic = ["dependencies"]', "has no list of dependencies"),
    ],
)
def test_what_would_be_run_to_be_installed_is_refused(
    checkout: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (checkout / name).write_text(text)
    commit(checkout)
    with pytest.raises(SettingsInvalid) as error:
        read_lock.command(tmp_path / "lock", folder=checkout)
    assert message in str(error.value)
    assert not (tmp_path / "lock").exists()


@pytest.fixture
def trusting(private_ca: Path) -> None:
    """skopeo trusts the certificates of the registries here."""
    trust()


@pytest.fixture
def registry(
    certificate: Path, world: World, trusting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A real registry, which has a base image ``base/python:3.12`` and the image of the tasks ``tasks:1``.

    The settings name them; nothing is recorded of any image.
    """
    world.cluster.ci.add("configmaps", {"metadata": {"name": image_records.NAME}})
    with serve_registry(tmp_path / "registry", certificate) as address:
        here = [f"PYTHON_VERSION={sys.version_info[0]}.{sys.version_info[1]}.1", "PATH=/usr/bin"]
        for name in ("base/python:3.12", "tasks:1"):
            Registry().push(image(tmp_path / name.replace(":", "-"), Env=here), f"{address}/{name}", compress=False)
        use_settings(
            monkeypatch,
            tmp_path / "settings.yaml",
            image=f"{address}/training",
            ci_image=f"{address}/tasks:1",
            base_image=f"{address}/base/python:3.12",
        )
        yield address


class Run:
    """What Tekton's tasks do of the images of a commit."""

    def __init__(self, name: str, checkout: Path, address: str, folder: Path) -> None:
        self.name, self.checkout, self.address, self.folder = name, checkout, address, folder / name
        self.found = self.find()

    def find(self) -> dict[str, str]:
        results = self.folder / "results"
        find_images.command(self.name, folder=self.checkout, result_dir=results)
        return {file.name: file.read_text() for file in results.iterdir()}

    def packages(self, what: str, option: str) -> None:
        base, target = ("base-image", "dependencies") if what == "dependencies" else ("ci-base-image", "ci-image")
        layout, folder = self.folder / what, self.folder / f"{what}-venv"
        fetch_image.command(self.found[base], layout, target=self.found[target])
        assert installed(self.checkout, folder, option).returncode == 0
        pack_image.command(layout, packages=folder)
        push_image.command(layout, self.found[target], compress=True)

    def code(self) -> str:
        layout, image = self.folder / "image", self.found["image"]
        fetch_image.command(self.found["dependencies"], layout, target=image)
        pack_image.command(layout, folder=self.checkout, target=image)
        push_image.command(layout, image, result_dir=self.folder / "pushed")
        return (self.folder / "pushed" / "image").read_text()

    def tag(self) -> None:
        """Of the training image by its digest, of the others by the tags of the run."""
        built = {**self.found, "image": (self.folder / "pushed" / "image").read_text()}
        pairs = " ".join(f"{built[name]}={built[f'{name}-tag']}" for name in ("dependencies", "image", "ci-image"))
        tag_images.command(pairs)


def missing(run: Run) -> set[str]:
    """The images that a run must build."""
    found = {name for name in ("dependencies", "ci-image") if run.found[f"{name}-missing"] == "true"}
    return found | (set() if "@" in run.found["image"] else {"image"})


@needs_registry
def test_a_push_of_code_sends_one_small_layer_and_a_push_of_nothing_nothing(
    locked: Path, registry: str, tmp_path: Path
) -> None:
    first = Run("push-1", locked, registry, tmp_path)
    assert missing(first) == {"dependencies", "image", "ci-image"}
    assert first.found["images-missing"] == "true"
    first.packages("dependencies", "--training")
    first.packages("ci-image", "--all")
    built = first.code()
    assert built.startswith(f"{registry}/training@sha256:")
    # Its tests have not passed yet: nobody finds what it has pushed.
    assert missing(Run("push-2", locked, registry, tmp_path)) == {"dependencies", "image", "ci-image"}
    first.tag()

    again = Run("push-3", locked, registry, tmp_path)
    assert missing(again) == set()
    assert again.found["images-missing"] == "false"
    assert again.code() == again.found["image"] == built

    change(locked, "pipeline/core/errors.py")
    code = Run("push-4", locked, registry, tmp_path)
    assert missing(code) == {"image"}
    assert code.found["dependencies"].startswith(f"{registry}/training@sha256:")
    newer = code.code()
    sent = {file.name for file in (code.folder / "image" / "blobs" / "sha256").iterdir()}
    manifest, config = Layout(code.folder / "image").read()
    assert len(manifest["layers"]) == 3
    assert [layer["digest"] for layer in manifest["layers"] if layer["digest"].removeprefix("sha256:") in sent] == [
        manifest["layers"][-1]["digest"]
    ]
    assert manifest["layers"][-1]["size"] < 300_000
    assert config["config"]["User"] == "1001:0"
    assert newer != built

    change(locked, "pipeline/core/errors.py", "\n# changed\n", "")
    reverted = Run("push-5", locked, registry, tmp_path)
    assert missing(reverted) == set()
    assert reverted.code() == built


@needs_registry
def test_the_image_of_the_tasks_is_the_one_of_the_settings_if_the_lock_is_that_of_the_product(
    checkout: Path, registry: str, tmp_path: Path
) -> None:
    same = Run("push-1", checkout, registry, tmp_path)
    assert missing(same) == {"dependencies", "image"}
    assert (same.found["ci-image"], same.found["ci-image-tag"]) == (f"{registry}/tasks:1", "")
    assert same.found["ci-image-stale"] == ""
    for command in ("apply", "doctor", "start", "wait"):
        change(checkout, f"scripts/{command}.py")
    other = Run("push-2", checkout, registry, tmp_path)
    assert other.found["ci-image-stale"] == "scripts/apply.py, scripts/doctor.py, scripts/start.py and more"


@needs_registry
def test_a_base_image_that_has_moved_is_another_one(locked: Path, registry: str, tmp_path: Path) -> None:
    before = Run("push-1", locked, registry, tmp_path)
    moved = image(tmp_path / "moved", User="1")
    Registry().push(moved, f"{registry}/base/python:3.12", compress=False)
    after = Run("push-2", locked, registry, tmp_path)
    for name in ("base-image", "dependencies-tag", "image-tag"):
        assert before.found[name] != after.found[name]
    assert before.found["ci-image-tag"] == after.found["ci-image-tag"]


@needs_registry
def test_a_base_image_that_is_not_there_is_named(
    checkout: Path, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_settings(monkeypatch, tmp_path / "other.yaml", base_image=f"{registry}/base/rust:1")
    with pytest.raises(RegistryRefuses, match=r"has no .*/base/rust:1\. Check base-image"):
        find_images.command("push-1", folder=checkout)


@needs_registry
def test_an_image_is_what_was_recorded_and_not_what_bears_its_tag(
    locked: Path, registry: str, tmp_path: Path, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody pushes to the tag that a later commit will look for, whose name is no secret."""
    before = Run("push-1", locked, registry, tmp_path)
    poison = image(tmp_path / "poison", User="1")
    Registry().push(poison, before.found["image-tag"], compress=False)
    first = Run("push-2", locked, registry, tmp_path)
    assert "image" in missing(first)
    assert "recorded is none: it is not used; the image is built again" in capsys.readouterr().out
    first.packages("dependencies", "--training")
    first.packages("ci-image", "--all")
    built = first.code()
    first.tag()
    assert missing(Run("push-3", locked, registry, tmp_path)) == set()
    digest = built.partition("@")[2]
    records = world.cluster.ci.objects["configmaps", image_records.NAME]["data"]
    assert records[first.found["image-tag"].rpartition(":")[2]].split()[0] == digest
    assert Registry().digest(first.found["image-tag"]) == digest, "what had the tag before is overwritten"
    # And later.
    Registry().push(poison, first.found["image-tag"], compress=False)
    second = Run("push-4", locked, registry, tmp_path)
    assert missing(second) == {"image"}
    assert f"recorded is {digest}: it is not used" in capsys.readouterr().out
    second.code()
    second.tag()
    assert Registry().digest(first.found["image-tag"]) == digest


def test_the_oldest_records_make_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_records, "LIMIT", 3)
    old = {f"tag-{day}": f"sha256:{day} 2026-11-0{day}T10:00:00Z" for day in (3, 1, 2)}
    world.cluster.ci.add("configmaps", {"metadata": {"name": image_records.NAME}, "data": old})
    cluster = Cluster(world.cluster.ci.namespace)
    image_records.add_records(cluster, {"tag-2": "sha256:4", "tag-5": "sha256:5"})
    assert image_records.read_records(cluster) == {"tag-2": "sha256:4", "tag-3": "sha256:3", "tag-5": "sha256:5"}


def test_records_of_two_runs_at_once_are_both_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "wait_random", lambda *_: wait_none())
    found = world.cluster.ci.add("configmaps", {"metadata": {"name": image_records.NAME}})
    answer, once = world.cluster.ci.answer, iter([True])

    def meanwhile(method: str, *rest: Any) -> Any:
        if method == "PATCH" and next(once, False):
            found["data"] = {"theirs": "sha256:1 2026-11-01T10:00:00Z"}
            world.cluster.ci.touch(found)
        return answer(method, *rest)

    monkeypatch.setattr(world.cluster, "answer", meanwhile)
    cluster = Cluster(world.cluster.ci.namespace)
    image_records.add_records(cluster, {"ours": "sha256:2"})
    assert image_records.read_records(cluster) == {"theirs": "sha256:1", "ours": "sha256:2"}


def test_without_a_place_for_records_it_is_said_who_makes_it(world: World) -> None:
    with pytest.raises(SettingsInvalid, match="no ConfigMap jukebox-images in ada-jukebox-ci: run `jukebox bootstrap`"):
        image_records.read_records(Cluster(world.cluster.ci.namespace))


def test_attributes_of_a_commit_change_nothing_in_its_layer(checkout: Path, base: Layout, tmp_path: Path) -> None:
    """Else two commits of one tree of code, and so of one tag, had other images."""
    (checkout / "pipeline" / "core" / "own.py").write_text("# $Format:%H$\n")
    commit(checkout)
    before = Commit(checkout).image_key(BASE)
    (checkout / ".gitattributes").write_text(
        "pipeline/models/jukebox/rules.py export-ignore\n*.py export-subst eol=crlf\n"
    )
    commit(checkout)
    assert Commit(checkout).image_key(BASE) == before
    pack_image.pack_commit(base, Commit(checkout))
    packed(base, tmp_path / "unpacked")
    for name in ("pipeline/models/jukebox/rules.py", "pipeline/core/own.py"):
        assert (tmp_path / "unpacked/opt/jukebox" / name).read_bytes() == (checkout / name).read_bytes()


def test_commands_of_another_version_than_those_that_run_are_told(checkout: Path) -> None:
    assert Commit(checkout).stale() == ""
    (checkout / "scripts" / "new.py").write_text("")
    (checkout / "scripts" / "start.py").unlink()
    change(checkout, "requirements.lock", new="# changed\n")
    assert Commit(checkout).stale() == "scripts/new.py, scripts/start.py, requirements.lock"
    change(checkout, "scripts/wait.py")
    assert Commit(checkout).stale() == "scripts/new.py, scripts/start.py, scripts/wait.py and more"
    assert Commit(checkout, "HEAD~2").stale() == ""


def test_an_image_that_is_named_by_tag_and_digest_is_named_by_digest() -> None:
    """skopeo takes only one of both."""
    assert find_images.pinned(f"example.com:1/python:3.12@{BASE.partition('@')[2]}", Registry()) == BASE.replace(
        "example.com", "example.com:1"
    )


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildFailed, match="skopeo cannot be run: No such file"):
        Registry().digest("localhost/image:tag")


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("example.com/a/b:1", "example.com/a/b"),
        ("localhost:5000/a", "localhost:5000/a"),
        ("localhost:5000/a:1@sha256:00", "localhost:5000/a"),
    ],
)
def test_a_repository_is_a_reference_without_tag_and_digest(reference: str, repository: str) -> None:
    assert repository_of(reference) == repository


@pytest.fixture
def played(certificate: Path, trusting: None) -> Iterator[tuple[HttpServer, str]]:
    """A registry that answers as it is told, and the image that is asked for."""
    with serve_http(certificate) as server:
        server.serve("/v2/", Answer(b"{}"))
        name = server.url.removeprefix("https://") + "/jukebox-training:0123456789abcdef"
        yield server, name


@needs_skopeo
@pytest.mark.parametrize(("status", "code"), [(404, "MANIFEST_UNKNOWN"), (404, "NAME_UNKNOWN")])
def test_an_image_that_is_not_there_has_no_digest(played: tuple[HttpServer, str], status: int, code: str) -> None:
    server, name = played
    serve_error(server, status, code)
    assert Registry().digest(name) == ""


@needs_skopeo
@pytest.mark.parametrize(("status", "code"), [(401, "UNAUTHORIZED"), (403, "DENIED")])
def test_a_registry_that_refuses_the_credentials_is_no_missing_image(
    played: tuple[HttpServer, str], status: int, code: str
) -> None:
    server, name = played
    serve_error(server, status, code)
    with pytest.raises(RegistryRefuses, match=r"Check the Secret jukebox-registry .* and that the repository exists"):
        Registry().digest(name)


def serve_error(server: HttpServer, status: int, code: str) -> None:
    said = f'{{"errors": [{{"code": "{code}", "message": "{code.lower().replace("_", " ")}"}}]}}'.encode()
    answer = Answer(said, status=status, headers={"Content-Type": "application/json"})
    server.serve("/v2/jukebox-training/manifests/0123456789abcdef", answer)


@needs_skopeo
def test_a_registry_that_is_away_is_no_missing_image(played: tuple[HttpServer, str]) -> None:
    server, name = played
    with pytest.raises(RegistryRefuses, match="connection refused"):
        Registry().digest("localhost:1/jukebox-training:0123456789abcdef")
    server.serve("/v2/jukebox-training/manifests/0123456789abcdef", Answer(b"oops", status=500))
    with pytest.raises(RegistryRefuses, match="500"):
        Registry().digest(name)


@needs_skopeo
def test_credentials_are_shown_where_there_are_some(played: tuple[HttpServer, str], tmp_path: Path) -> None:
    server, name = played
    server.serve("/v2/", Answer(b"", status=401, headers={"WWW-Authenticate": 'Basic realm="here"'}))
    server.serve("/v2/jukebox-training/manifests/0123456789abcdef", Answer(b"", status=404))
    file = tmp_path / "config.json"
    assert Registry(file).options() == Registry().options()
    host = name.partition("/")[0]
    file.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(b"ada:a-password").decode()}}}))
    with pytest.raises(RegistryRefuses):
        Registry(file).fetch(name, Layout(tmp_path / "layout"))
    shown = {headers.get("Authorization") for path, headers in server.requests if "manifests" in path}
    assert shown == {f"Basic {base64.b64encode(b'ada:a-password').decode()}"}


@pytest.mark.parametrize("name", ["../../..", "a b", "", None, ["jukebox"]])
def test_a_commit_that_names_no_model_is_refused(checkout: Path, name: object) -> None:
    (checkout / "manifests" / "settings" / "settings.yaml").write_text(json.dumps({"data": {"model-name": name}}))
    commit(checkout)
    with pytest.raises(SettingsInvalid, match="settings have no valid model-name: expected lower case letters"):
        keys(checkout)


def test_the_image_is_that_of_the_model_that_the_commit_names(checkout: Path) -> None:
    before = keys(checkout)
    shutil.copytree(checkout / "pipeline" / "models" / "jukebox", checkout / "pipeline" / "models" / "my_model")
    change(checkout, "manifests/settings/settings.yaml", "model-name: jukebox", "model-name: my-model")
    assert [old == new for old, new in zip(before, keys(checkout), strict=True)] == [True, False, True]
    assert PurePosixPath("pipeline/models/my_model") in [source for source, _ in Commit(checkout).containerfile.copies]
