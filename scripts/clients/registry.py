"""An image registry as skopeo speaks with it: credentials, token servers and retries are skopeo's."""

import hashlib
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pipeline.core.errors import BuildFailed, RegistryRefuses
from pipeline.core.trusted_ca import REMEDY
from scripts.layout import MANIFEST, Layout

Target = Annotated[str, typer.Option(help="Image to make. With a digest, nothing is done: the image exists.")]
AuthFile = Annotated[Path | None, typer.Option(help="The registry's credentials. The file may be missing.")]

# What a registry says of an image that it does not have.
MISSING = re.compile(r"manifest unknown|name unknown|not found|status 404", re.IGNORECASE)
REFUSED = re.compile(r"denied|unauthorized|forbidden|authentication required|status 40[13]", re.IGNORECASE)

# What one says that deletes nothing, as by default the registry of the Distribution project.
UNSUPPORTED = re.compile(r"unsupported|method ?not ?allowed|status:? 405", re.IGNORECASE)


def repository_of(reference: str) -> str:
    """Return an image's repository: the reference without its tag and its digest."""
    name = reference.partition("@")[0]
    return name[: -len(tag[0])] if (tag := re.search(r":[^:/]*$", name)) else name


def is_pinned(reference: str) -> bool:
    """Tell whether an image is named by its digest: such a one is in the registry."""
    return "@" in reference


@dataclass(frozen=True)
class Registry:
    """How a registry is reached: a file of credentials, which may be missing."""

    auth_file: Path | None = None

    def options(self) -> list[str]:
        """Options of skopeo."""
        return [f"--authfile={self.auth_file}"] if self.auth_file and self.auth_file.is_file() else []

    def digest(self, reference: str) -> str:
        """Return the digest of an image, or an empty string if the registry has none under that tag.

        Raises RegistryRefuses, with skopeo's words, if the registry does not tell: a push would fail, too.
        """
        done = self._inspect("--format={{.Digest}}", f"docker://{reference}")
        if done.returncode == 0:
            return done.stdout.decode().strip()
        said = done.stderr.decode(errors="replace").strip()
        if MISSING.search(said) and not REFUSED.search(said):
            return ""
        raise _refuses(f"The registry cannot be asked for {reference}", said)

    def fetch(self, reference: str, layout: Layout) -> None:
        """Write manifest and configuration of an OCI image to a layout, without its layers.

        Raises BuildFailed if ``reference`` names an index or a Docker image, to which no layer can be added like that.
        """
        manifest = self._read(reference)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        if json.loads(manifest).get("mediaType", MANIFEST) != MANIFEST:
            raise BuildFailed(f"{reference} is not a single OCI image: expected the type application/{MANIFEST}")
        # Both of one digest, also if the tag moves in between.
        config = self._read(f"{repository_of(reference)}@{digest}", "--config")
        layout.write(manifest, config)

    def copy(self, reference: str, layout: Layout) -> None:
        """Write an image with its layers to a layout, as an OCI image of this machine's architecture."""
        self._copy(f"docker://{reference}", f"oci:{layout.folder}")

    def push(self, layout: Layout, reference: str, *, compress: bool) -> str:
        """Push the image of a layout, without the layers that the registry has; return its digest.

        ``compress``: with zstd, what is not compressed yet. Otherwise its digest stays that of the layout.
        """
        how = "--dest-compress-format=zstd" if compress else "--preserve-digests"
        with TemporaryDirectory() as folder:
            digest = Path(folder, "digest")
            self._copy(f"oci:{layout.folder}", f"docker://{reference}", how, f"--digestfile={digest}")
            return digest.read_text().strip()

    def tag(self, image: str, reference: str) -> None:
        """Let ``reference`` name an image that is in the same repository, by its digest."""
        self._copy(f"docker://{image}", f"docker://{reference}", "--preserve-digests")

    def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository; none if the registry does not have it.

        Raises RegistryRefuses, with skopeo's words, if the registry does not tell.
        """
        done = _skopeo("list-tags", "--retry-times=3", *self.options(), f"docker://{repository}")
        if done.returncode == 0:
            return [str(tag) for tag in json.loads(done.stdout)["Tags"] or ()]
        said = done.stderr.decode(errors="replace").strip()
        if MISSING.search(said) and not REFUSED.search(said):
            return []
        raise _refuses(f"The tags of {repository} cannot be listed", said)

    def delete(self, image: str) -> bool:
        """Delete an image, named by its digest, with all its tags; return False if the registry allows no deletion.

        It may be gone already. The registry's own garbage collection frees the space. Raises RegistryRefuses, with
        skopeo's words, for any other refusal.
        """
        done = _skopeo("delete", "--retry-times=3", *self.options(), f"docker://{image}")
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode and UNSUPPORTED.search(said):
            return False
        if done.returncode and (REFUSED.search(said) or not MISSING.search(said)):
            raise _refuses(f"{image} cannot be deleted", said)
        return True

    def _inspect(self, *words: str) -> "subprocess.CompletedProcess[bytes]":
        return _skopeo("inspect", "--retry-times=3", *self.options(), *words)

    def _read(self, reference: str, *words: str) -> bytes:
        done = self._inspect("--raw", *words, f"docker://{reference}")
        if done.returncode:
            raise _refuses(f"{reference} cannot be read", done.stderr.decode(errors="replace").strip())
        return done.stdout

    def _copy(self, source: str, target: str, *words: str) -> None:
        done = _skopeo("copy", "--quiet", "--retry-times=3", *self.options(), *words, source, target)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise _refuses(f"{source} cannot be copied to {target}", said)


def _refuses(what: str, said: str) -> RegistryRefuses:
    remedy = "Check the image's name and the registry's address."
    if "x509: " in said:
        remedy = f"The registry's certificate is not trusted: {REMEDY}."
    elif REFUSED.search(said):
        remedy = "Check the Secret jukebox-registry (`jukebox secrets --registry-file`) and that the repository exists."
    return RegistryRefuses(f"{what}: {said}\n{remedy}")


def _skopeo(*words: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["skopeo", *words], check=False, capture_output=True)
    except OSError as error:
        raise BuildFailed(f"skopeo cannot be run: {error.strerror}; the ci image has it") from None
