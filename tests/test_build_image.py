"""``jukebox build-image``: what names an image, and what a registry's answers mean."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import BuildFailed, RegistryRefuses, SettingsInvalid
from scripts.build_image import INPUTS, Registry, find_digest, tag_of
from tests.git_server import IDENTITY
from tests.http_server import Answer, HttpServer, serve_http

pytest_plugins = ("tests.kfp.fixtures",)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the files of this repository that the Containerfile names, and one more."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in INPUTS:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    (folder / "README.md").write_text("Read me")
    commit(folder, "init", "--quiet")
    return folder


def commit(folder: Path, *first: str) -> None:
    for words in (first, ("add", "--all"), ("commit", "--quiet", "--message", "Change")):
        if words:
            subprocess.run(["git", *words], cwd=folder, env={**os.environ, **IDENTITY}, check=True)


def test_the_tag_changes_with_each_input(checkout: Path) -> None:
    tags = [tag_of(checkout, "", "")]
    for name in ("Containerfile", "requirements.lock", "pyproject.toml", "pipeline/steps/gate.py"):
        (checkout / name).write_text((checkout / name).read_text() + "\n# changed\n")
        commit(checkout)
        tags.append(tag_of(checkout, "", ""))
    (checkout / "pipeline" / "new.py").write_text("")
    commit(checkout)
    tags.append(tag_of(checkout, "", ""))
    (checkout / "pipeline" / "new.py").chmod(0o755)
    commit(checkout)
    tags.append(tag_of(checkout, "", ""))
    tags += [tag_of(checkout, "base", ""), tag_of(checkout, "", "base"), tag_of(checkout, "base", "index")]
    assert len(set(tags)) == len(tags) == 10
    assert all(len(tag) == 16 and set(tag) <= set("0123456789abcdef") for tag in tags)


def test_the_tag_changes_with_nothing_else(checkout: Path) -> None:
    tag = tag_of(checkout, "base", "index")
    (checkout / "README.md").write_text("Read me again")
    (checkout / "scripts").mkdir()
    (checkout / "scripts" / "new.py").write_text("")
    commit(checkout)
    assert tag_of(checkout, "base", "index") == tag
    # Nor with what is no part of the commit: it is built as git has it.
    (checkout / "Containerfile").write_text("FROM nothing")
    (checkout / "pipeline" / "left-by-a-test").write_text("")
    assert tag_of(checkout, "base", "index") == tag
    moved = checkout.rename(checkout.with_name("elsewhere"))
    assert tag_of(moved, "base", "index") == tag


def test_what_is_no_checkout_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="git ls-tree fails in"):
        tag_of(tmp_path, "", "")


def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildFailed, match="skopeo cannot be run: No such file"):
        find_digest("localhost/image:tag", Registry())


needs_skopeo = pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed; the cluster tier has it")
MANIFEST = b"""{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [], "config":
  {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest":
   "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}}"""


@pytest.fixture
def registry(certificate: Path, tmp_path: Path) -> Iterator[tuple[HttpServer, Path, str]]:
    """A registry behind TLS that has no image yet, the folder with its CA, and the image that is asked for."""
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "ca.crt").write_bytes(certificate.read_bytes())
    with serve_http(certificate) as server:
        server.serve("/v2/", Answer(b"{}"))
        yield server, tmp_path / "ca", server.url.removeprefix("https://") + "/jukebox-training:0123456789abcdef"


@needs_skopeo
def test_an_image_that_is_there_has_a_digest(registry: tuple[HttpServer, Path, str]) -> None:
    server, ca, image = registry
    kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
    server.serve("/v2/jukebox-training/manifests/0123456789abcdef", Answer(MANIFEST, headers=kind))
    config = "/v2/jukebox-training/blobs/sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    server.serve(config, Answer(b"{}"))
    server.serve("/v2/", Answer(b"{}"))
    assert find_digest(image, Registry(ca)).startswith("sha256:")


@needs_skopeo
@pytest.mark.parametrize(
    ("status", "code"), [(404, "MANIFEST_UNKNOWN"), (404, "NAME_UNKNOWN"), (401, "UNAUTHORIZED"), (403, "DENIED")]
)
def test_an_image_that_is_not_there_has_none(
    registry: tuple[HttpServer, Path, str], status: int, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server, ca, image = registry
    said = f'{{"errors": [{{"code": "{code}", "message": "{code.lower().replace("_", " ")}"}}]}}'.encode()
    kind = {"Content-Type": "application/json"}
    server.serve("/v2/jukebox-training/manifests/0123456789abcdef", Answer(said, status=status, headers=kind))
    assert find_digest(image, Registry(ca)) == ""
    assert f"The registry has no {image}: " in capsys.readouterr().out


@needs_skopeo
def test_a_registry_that_is_away_is_no_missing_image(registry: tuple[HttpServer, Path, str], tmp_path: Path) -> None:
    server, ca, image = registry
    with pytest.raises(RegistryRefuses, match="connection refused"):
        find_digest("localhost:1/jukebox-training:0123456789abcdef", Registry(ca))
    with pytest.raises(RegistryRefuses, match="certificate signed by unknown authority"):
        find_digest(image, Registry(tmp_path))
    server.serve("/v2/jukebox-training/manifests/0123456789abcdef", Answer(b"oops", status=500))
    with pytest.raises(RegistryRefuses, match="500"):
        find_digest(image, Registry(ca))


@needs_skopeo
def test_credentials_are_shown_where_there_are_some(registry: tuple[HttpServer, Path, str], tmp_path: Path) -> None:
    server, ca, image = registry
    kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
    server.serve("/v2/", Answer(b"", status=401, headers={"WWW-Authenticate": 'Basic realm="here"'}))
    server.serve("/v2/jukebox-training/manifests/0123456789abcdef", Answer(MANIFEST, headers=kind))
    file = tmp_path / "config.json"
    assert Registry(ca, file).options == Registry(ca).options
    host = image.partition("/")[0]
    file.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(b"ada:a-password").decode()}}}))
    find_digest(image, Registry(ca, file))
    shown = {headers.get("Authorization") for path, headers in server.requests if "manifests" in path}
    assert shown == {f"Basic {base64.b64encode(b'ada:a-password').decode()}"}
