"""Images made of files, without a daemon, and pushed to the registry inside the node.

The node pulls every image from there whatever its name is: what is pushed as ``library/python:3.11`` is ``python:3.11``
to a pod.
"""

import hashlib
import json
import os
import shutil
import ssl
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster import node
from tests.cluster.build import CACHE, kept, run, say

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"  # its Python is 3.11
# The name of the image that most tests use, so that they find it on a cluster with a way out too, and what it holds.
PYTHON = "python:3.11-slim-bookworm"
PACKAGES = ("ca-certificates", "git", "python-is-python3", "python3", "python3-pip", "python3-venv", "redis-server")
# Of this machine's own builds; what is in it is found again by its content.
STORAGE = CACHE / "buildah"
HERE = ("--isolation=chroot", "--network=host")


def push(name: str, layers: Sequence[Path], config: Mapping[str, Any]) -> str:
    """Push an image of layers.

    Args:
        name: the repository, with ``:tag`` where the image is also to be found by that.
        layers: tar files, the lowest first.
        config: what a container of it runs: ``Entrypoint``, ``User``, ``Env``, … of the OCI image configuration.

    Returns:
        The reference by digest.
    """
    repository, _, tag = name.partition(":")
    base = f"https://{node.REGISTRY}/v2/{repository}"
    with node.session() as http:

        def upload(blob: Path | bytes) -> tuple[str, int]:
            if isinstance(blob, bytes):
                digest, size = hashlib.sha256(blob).hexdigest(), len(blob)
            else:
                with blob.open("rb") as file:
                    digest, size = hashlib.file_digest(file, "sha256").hexdigest(), blob.stat().st_size
            digest = f"sha256:{digest}"
            if not http.head(f"{base}/blobs/{digest}", timeout=60).ok:
                place = http.post(f"{base}/blobs/uploads/", timeout=60).headers["Location"]
                with tempfile.TemporaryFile() if isinstance(blob, bytes) else blob.open("rb") as file:
                    body = blob if isinstance(blob, bytes) else file
                    http.put(place, params={"digest": digest}, data=body, timeout=600).raise_for_status()
            return digest, size

        uploaded = [upload(layer) for layer in layers]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        whole = {
            "architecture": run("dpkg", "--print-architecture").strip(),
            "os": "linux",
            "config": {"Env": [path], **config},
            "rootfs": {"type": "layers", "diff_ids": [digest for digest, _ in uploaded]},
            "history": [{"created_by": "tests/cluster"} for _ in uploaded],  # buildah wants an entry for each layer
        }
        kind = "application/vnd.oci.image"
        digest, size = upload(json.dumps(whole).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", "digest": digest, "size": size},
            "layers": [
                {"mediaType": f"{kind}.layer.v1.tar", "digest": digest, "size": size} for digest, size in uploaded
            ],
        }
        body = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        headers = {"Content-Type": manifest["mediaType"]}
        done = http.put(f"{base}/manifests/{tag or digest}", data=body, headers=headers, timeout=60)  # type: ignore[arg-type]
        done.raise_for_status()
    return f"{node.REGISTRY}/{repository}@{digest}"


def forget(repository: str, but: str | None) -> None:
    """Take the tags out of a repository that an earlier node has pushed to, but those that begin so; None: all."""
    tags = node.LAYERS / "docker" / "registry" / "v2" / "repositories" / repository / "_manifests" / "tags"
    for tag in tags.glob("*"):
        if but is None or not tag.name.startswith(but):
            shutil.rmtree(tag)


@contextmanager
def layer(files: Mapping[str, Path | str]) -> Iterator[Path]:
    """A layer of files and folders by their paths inside, and a /tmp; a string instead is what a link there names."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
        return entry

    with tempfile.NamedTemporaryFile(dir=node.STATE, suffix=".tar") as packed:
        with tarfile.open(fileobj=packed, mode="w") as tar:
            folder = tarfile.TarInfo("tmp")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(folder)
            for inside, file in files.items():
                if isinstance(file, Path):
                    tar.add(file, inside, filter=anonymous)
                else:
                    link = tarfile.TarInfo(inside)
                    link.type, link.linkname = tarfile.SYMTYPE, file
                    tar.addfile(link)
        packed.flush()
        yield Path(packed.name)


def of_binary(name: str, program: Path) -> str:
    """Push an image that holds one static program and a /tmp, in the places where ko puts them."""
    inside = f"ko-app/{program.name}"
    with layer({inside: program}) as packed:
        return push(name, [packed], {"Entrypoint": [f"/{inside}"], "User": "65532:65532"})


def of_debian(name: str, *packages: str, files: Mapping[str, Path | str] | None = None, **config: Any) -> str:
    """Push an image of Debian with packages, and with files over it; it runs Python unless ``config`` says else."""
    with layer(files or {}) as packed:
        return push(name, [debian(*packages), packed] if files else [debian(*packages)], {"Cmd": ["python3"], **config})


def debian(*packages: str) -> Path:
    """The layer of Debian with some packages, kept in the cache."""
    digest = hashlib.sha256(" ".join((SUITE, *packages)).encode()).hexdigest()[:12]

    def fill(target: Path) -> None:
        say(f"building an image of Debian with {', '.join(packages)}")
        root = target / "root"
        # What debootstrap mounts is gone with its mount namespace, also when it is interrupted.
        debootstrap = ("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(packages)}")
        run(*debootstrap, SUITE, root, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        left_out = ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "dev/*", "proc/*", "sys/*")
        run(
            *("tar", "--create", f"--file={target / 'layer.tar'}", f"--directory={root}"),
            *("--numeric-owner", "--sort=name", "--mtime=@0", *(f"--exclude=./{path}" for path in left_out), "."),
        )
        shutil.rmtree(root)

    return kept(CACHE / f"debian-{digest}", fill) / "layer.tar"


def _bundle() -> Path:
    """A folder with the CAs that this machine trusts as ``ca-bundle.crt``: its package index may be its own."""
    folder = CACHE / "trusted-ca"
    folder.mkdir(parents=True, exist_ok=True)
    if bundle := ssl.get_default_verify_paths().cafile:
        shutil.copy(bundle, folder / "ca-bundle.crt")
    return folder


def trusting() -> tuple[str, ...]:
    """Options of a build that lets it trust what this machine trusts."""
    return (f"--volume={_bundle()}:/etc/trusted-ca:ro",)


def of_containerfile(name: str, target: str) -> str:
    """Build a target of the repository's Containerfile, on the Debian image of the node, and push it.

    It is built here, where packages can be had, and not in the cluster. Returns the reference by digest.
    """
    say(f"building the image {name} from the Containerfile")
    buildah("rm", "--all")  # with their mounts: of a build that was killed
    with tempfile.TemporaryDirectory() as folder:
        digest = Path(folder) / "digest"
        base = f"--build-arg=BASE_IMAGE={node.REGISTRY}/library/{PYTHON}"
        registry = f"--cert-dir={node.TRUST}"
        buildah(
            *("build", *HERE, *trusting(), "--layers", f"--target={target}"),
            *(base, registry, f"--tag={name}", str(ROOT)),
        )
        # Without compression: it goes no further than into the node.
        pushed = f"docker://{node.REGISTRY}/{name}"
        buildah("push", "--disable-compression", registry, f"--digestfile={digest}", name, pushed)
        return f"{node.REGISTRY}/{name}@{digest.read_text().strip()}"


def packages(image: str) -> Path:
    """A folder with all that the lock names, as the package index has it, for the Python of ``image``."""
    digest = hashlib.sha256((ROOT / "requirements.lock").read_bytes()).hexdigest()[:12]

    def fill(target: Path) -> None:
        say("collecting packages for an index inside the node")
        bundle = _bundle()
        container = buildah("from", "--pull-never", image).strip()
        try:
            trust = ["--env=PIP_CERT=/bundle/ca-bundle.crt"] if (bundle / "ca-bundle.crt").exists() else []
            volumes = (f"--volume={target}:/all", f"--volume={ROOT}:/here:ro", f"--volume={bundle}:/bundle:ro")
            download = ("/opt/uv/bin/pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest=/all")
            what = "--requirement=/here/requirements.lock"
            buildah("run", *HERE, *volumes, *trust, "--user=0", container, "--", *download, what)
        finally:
            buildah("rm", container)

    return kept(CACHE / f"packages-{digest}", fill)


def buildah(command: str, *arguments: str) -> str:
    """Run buildah with a storage of its own."""
    storage = (f"--root={STORAGE / 'root'}", f"--runroot={STORAGE / 'run'}", "--storage-driver=overlay")
    return run("buildah", *storage, command, *arguments)
