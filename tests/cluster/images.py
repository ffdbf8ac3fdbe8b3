"""Images made of files, without a daemon, and pushed to the registry inside the node.

The node pulls every image from there whatever its name is: what is pushed as ``library/python:3.11`` is ``python:3.11``
to a pod.
"""

import hashlib
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.cluster import node
from tests.cluster.build import CACHE, filled, run, say

SUITE = "bookworm"  # its Python is 3.11
# The name of the image that most tests use, so that they find it on a cluster with a way out too, and what it holds.
PYTHON = "python:3.11-slim-bookworm"
PACKAGES = ("ca-certificates", "git", "python-is-python3", "python3", "python3-pip", "python3-venv")


def push(name: str, layer: Path, config: dict[str, Any]) -> str:
    """Push an image of one layer.

    Args:
        name: the repository, with ``:tag`` where the image is also to be found by that.
        layer: a tar file.
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

        digest, size = upload(layer)
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        whole = {
            "architecture": run("dpkg", "--print-architecture").strip(),
            "os": "linux",
            "config": {"Env": [path], **config},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
        kind = "application/vnd.oci.image"
        layers = [{"mediaType": f"{kind}.layer.v1.tar", "digest": digest, "size": size}]
        digest, size = upload(json.dumps(whole).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{kind}.manifest.v1+json",
            "config": {"mediaType": f"{kind}.config.v1+json", "digest": digest, "size": size},
            "layers": layers,
        }
        body = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        headers = {"Content-Type": manifest["mediaType"]}
        done = http.put(f"{base}/manifests/{tag or digest}", data=body, headers=headers, timeout=60)  # type: ignore[arg-type]
        done.raise_for_status()
    return f"{node.REGISTRY}/{repository}@{digest}"


def of_binary(name: str, program: Path) -> str:
    """Push an image that holds one static program and a /tmp, in the places where ko puts them."""
    inside = f"ko-app/{program.name}"
    with tempfile.NamedTemporaryFile(dir=CACHE, suffix=".tar") as layer:
        with tarfile.open(fileobj=layer, mode="w") as tar:
            folder = tarfile.TarInfo("tmp")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(folder)
            entry = tar.gettarinfo(program, inside)
            entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname = 0, 0, 0, "", ""
            with program.open("rb") as file:
                tar.addfile(entry, file)
        layer.flush()
        return push(name, Path(layer.name), {"Entrypoint": [f"/{inside}"], "User": "65532:65532"})


def of_debian(name: str, *packages: str) -> str:
    """Push an image of Debian with some packages; its files are kept in the cache."""
    digest = hashlib.sha256(" ".join((SUITE, *packages)).encode()).hexdigest()[:12]
    target = CACHE / f"debian-{digest}"
    if not target.exists():
        say(f"building an image of Debian with {', '.join(packages)}")
        with filled(target) as whole, tempfile.TemporaryDirectory(dir=CACHE) as root:
            # What debootstrap mounts is gone with its mount namespace, also when it is interrupted.
            debootstrap = ("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(packages)}")
            run(*debootstrap, SUITE, root, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
            left_out = ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*", "dev/*", "proc/*", "sys/*")
            run(
                *("tar", "--create", f"--file={whole / 'layer.tar'}", f"--directory={root}"),
                *("--numeric-owner", "--sort=name", "--mtime=@0", *(f"--exclude=./{path}" for path in left_out), "."),
            )
    return push(name, target / "layer.tar", {"Cmd": ["python3"]})
