"""An image in a folder (OCI image layout), to which layers are added without unpacking those that it has.

The layers below may be missing: skopeo does not read from a layout what a registry has already. What is packed has no
time, no owner but root and two modes, so that the same files have the same digest wherever they are packed.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.core.documents import to_json
from pipeline.core.errors import BuildFailed

_KIND = "application/vnd.oci.image"
MANIFEST = f"{_KIND}.manifest.v1+json"
LIMIT = 50_000_000  # bytes of a commit's code, which is packed in memory

Json = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """An OCI image layout that holds one image."""

    folder: Path

    def read(self) -> tuple[Json, Json]:
        """Return manifest and configuration; raises BuildFailed if there is no such image."""
        try:
            [entry] = json.loads((self.folder / "index.json").read_bytes())["manifests"]
            manifest = json.loads(self._blob(entry["digest"]).read_bytes())
            return manifest, json.loads(self._blob(manifest["config"]["digest"]).read_bytes())
        except (OSError, ValueError, KeyError) as error:
            raise BuildFailed(f"{self.folder} is not an OCI layout of one image: {error!r}") from None

    def write(self, manifest: bytes, config: bytes) -> str:
        """Make the image that of ``manifest`` and ``config``; return its digest."""
        wanted, found = json.loads(manifest)["config"]["digest"], self.add(config)["digest"]
        if wanted != found:
            raise BuildFailed(f"the image's configuration is {found}, expected {wanted}")
        entry = {"mediaType": MANIFEST, **self.add(manifest)}
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (self.folder / "index.json").write_text(to_json({"schemaVersion": 2, "manifests": [entry]}))
        return str(entry["digest"])

    def add(self, data: bytes) -> Json:
        """Add a blob; return digest and size, as a descriptor has them."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._blob(digest).parent.mkdir(parents=True, exist_ok=True)
        self._blob(digest).write_bytes(data)
        return {"digest": digest, "size": len(data)}

    def append(self, layer: Json, diff_id: str, created_by: str, **config: Any) -> str:
        """Put a layer on the image, whose blob is in the layout, and configure it; return the new digest.

        Args:
            layer: its descriptor.
            diff_id: the digest of the layer without compression.
            created_by: what made it, for the history.
            config: ``Env``, ``User``, ``WorkingDir``, … of the OCI image configuration.
        """
        manifest, whole = self.read()
        manifest["layers"].append(layer)
        whole["rootfs"]["diff_ids"].append(diff_id)
        # Times are those of the base: they would change the digest of equal content.
        whole.setdefault("history", []).append({"created": whole.get("created"), "created_by": created_by})
        whole.setdefault("config", {}).update(config)
        packed = to_json(whole, sort_keys=True).encode()
        kind = {"mediaType": f"{_KIND}.config.v1+json"}
        manifest |= {"mediaType": MANIFEST, "config": {**kind, **self.add(packed)}}
        return self.write(to_json(manifest, sort_keys=True).encode(), packed)

    def pack(self, files: "Files", **config: Any) -> str:
        """Put a small layer of files on the image, gzipped; return the new digest."""
        tar = io.BytesIO()
        _write(tar, files.entries())
        # Of zlib, not of gzip: the same bytes in every version of Python.
        packed = zlib.compress(tar.getvalue(), wbits=31)
        layer = {"mediaType": f"{_KIND}.layer.v1.tar+gzip", **self.add(packed)}
        return self.append(layer, f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}", "code", **config)

    def pack_folder(self, folder: Path, inside: PurePosixPath, **config: Any) -> str:
        """Put a large layer on the image: ``folder`` at the path ``inside``, whatever is there; return the new digest.

        It is not compressed: whoever pushes it does that.
        """
        half = self._blob("sha256:half")
        half.parent.mkdir(parents=True, exist_ok=True)
        with half.open("w+b") as file:
            _write(file, _walk(folder, inside))
            file.seek(0)
            diff_id = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        size = half.stat().st_size
        half.replace(self._blob(diff_id))
        layer = {"mediaType": f"{_KIND}.layer.v1.tar", "digest": diff_id, "size": size}
        return self.append(layer, diff_id, "packages", **config)

    def _blob(self, digest: str) -> Path:
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")


class Files:
    """Files to be packed, by their path in the image: mode and content."""

    def __init__(self) -> None:
        self._files: dict[PurePosixPath, tuple[bool, bytes]] = {}
        self._size = 0

    def add(
        self, entries: Iterable[tuple[PurePosixPath, str, bytes]], source: PurePosixPath, target: PurePosixPath
    ) -> None:
        """Add entries (path, git's mode, content) at or below ``source``, at or below ``target``.

        Raises BuildFailed if there is nothing, something else than files, or more than ``LIMIT`` bytes.
        """
        found = False
        for name, mode, content in entries:
            if mode not in ("100644", "100755") or ".." in name.parts:
                raise BuildFailed(f"{name} is neither a file nor a folder; only these can go into the image")
            found = True
            self._size += len(content)
            if self._size > LIMIT:
                raise BuildFailed(f"{source} holds more than {LIMIT} bytes; data does not belong in the image")
            self._files[target / name.relative_to(source)] = (mode == "100755", content)
        if not found:
            raise BuildFailed(f"the commit has no {source}, which the Containerfile copies")

    def entries(self) -> "Entries":
        """Yield the files, and the folders that they are in, in the order of their paths."""
        whole: dict[PurePosixPath, tuple[bool, bytes] | None] = dict(self._files)
        whole |= {parent: None for path in self._files for parent in path.parents if parent.name}
        for path, file in sorted(whole.items()):
            entry = tarfile.TarInfo(str(path).lstrip("/"))
            if file is None:
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                yield entry, None
            else:
                executable, content = file
                entry.mode, entry.size = (0o755 if executable else 0o644), len(content)
                yield entry, io.BytesIO(content)


Entries = Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]


def _walk(folder: Path, inside: PurePosixPath) -> Entries:
    """Yield all of a folder below ``inside``; what an image below has there is hidden."""
    for parent in reversed([inside, *inside.parents][:-1]):
        entry = tarfile.TarInfo(str(parent).lstrip("/"))
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        yield entry, None
    yield tarfile.TarInfo(f"{inside}/.wh..wh..opq".lstrip("/")), None
    for path in sorted(folder.rglob("*")):
        entry = tarfile.TarInfo(str(inside / path.relative_to(folder)).lstrip("/"))
        if path.is_symlink():
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            yield entry, None
        elif path.is_dir():
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            yield entry, None
        elif path.is_file():
            status = path.stat()
            entry.mode, entry.size = (0o755 if status.st_mode & 0o100 else 0o644), status.st_size
            with path.open("rb") as file:
                yield entry, file
        else:
            raise BuildFailed(f"{path} is neither a file nor a folder nor a link")


def _write(target: IO[bytes], entries: Entries) -> None:
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 20) as tar:
        for entry, content in entries:  # of owner 0:0, of 1970
            tar.addfile(entry, content)
