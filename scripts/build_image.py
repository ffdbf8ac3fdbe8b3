"""``jukebox build-image``: the training image of a commit, built only where there is none of the same inputs."""

import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pipeline.errors import BuildFailed, RegistryRefuses
from scripts.git import git
from scripts.results import ResultDir, write_results

# What the Containerfile's target `training` is made of.
INPUTS = ("Containerfile", "requirements.lock", "pyproject.toml", "pipeline")
# What a registry says of an image that is not there; some say so little of one that a stranger may not see.
MISSING = re.compile(r"manifest unknown|name unknown|not found|status 404|denied|unauthorized", re.IGNORECASE)


@dataclass(frozen=True)
class Registry:
    """How a registry is reached: a folder with its ``ca.crt``, and a file of credentials that may be missing."""

    trusted_ca: Path | None = None
    auth_file: Path | None = None

    @property
    def options(self) -> list[str]:
        """Of skopeo and buildah alike."""
        found = [f"--cert-dir={self.trusted_ca}"] if self.trusted_ca else []
        return [*found, f"--authfile={self.auth_file}"] if self.auth_file and self.auth_file.is_file() else found


def command(
    image: Annotated[str, typer.Argument(help="Repository of the image, without a tag.")],
    base_image: Annotated[str, typer.Option(help="Base image; empty: that of the Containerfile.")] = "",
    package_index: Annotated[str, typer.Option(help="Package index for pip; empty: pip's own.")] = "",
    trusted_ca: Annotated[Path | None, typer.Option(help="Folder with ca.crt of a registry or index.")] = None,
    auth_file: Annotated[Path | None, typer.Option(help="The registry's credentials; may be missing.")] = None,
    folder: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
    result_dir: ResultDir = None,
) -> None:
    """Build the training image of the checkout's commit and push it, unless there is one of the same inputs.

    Its tag is their hash. Needs skopeo and buildah.

    Example: `jukebox build-image registry.example.com/jukebox-training`
    """
    tag = tag_of(folder, base_image, package_index)
    registry = Registry(trusted_ca, auth_file)
    digest = find_digest(f"{image}:{tag}", registry)
    if digest:
        print(f"{image}:{tag} has these inputs: nothing to build", flush=True)
    else:
        arguments = {"BASE_IMAGE": base_image, "PIP_INDEX_URL": package_index}
        digest = build(folder, f"{image}:{tag}", {key: value for key, value in arguments.items() if value}, registry)
    print(f"{image}@{digest}")
    write_results(result_dir, image=f"{image}@{digest}")


def tag_of(folder: Path, base_image: str, package_index: str) -> str:
    """The hash of all that the image is made of, as the checkout's commit has it: 16 hexadecimal digits."""
    tree = git(folder, "ls-tree", "-r", "-z", "--full-tree", "HEAD", *INPUTS)
    return hashlib.sha256(tree + f"{base_image}\n{package_index}".encode()).hexdigest()[:16]


def find_digest(tagged: str, registry: Registry) -> str:
    """The digest of an image, or nothing where the registry has none of that tag.

    Raises RegistryRefuses, with skopeo's words, where that cannot be told: what is built could not be pushed either.
    """
    command = ["skopeo", "inspect", "--no-tags", "--retry-times=3", *registry.options]
    done = _run([*command, "--format={{.Digest}}", f"docker://{tagged}"], capture=True)
    if done.returncode == 0:
        return done.stdout.decode().strip()
    said = done.stderr.decode(errors="replace").strip()
    if not MISSING.search(said):
        raise RegistryRefuses(f"The registry does not tell whether it has {tagged}: {said}")
    print(f"The registry has no {tagged}: {said}", flush=True)
    return ""


def build(folder: Path, tagged: str, arguments: dict[str, str], registry: Registry) -> str:
    """Build the image of the commit, not of what else lies in the checkout; push it, and return its digest."""
    volume = [f"--volume={registry.trusted_ca}:/etc/trusted-ca:ro"] if registry.trusted_ca else []
    with TemporaryDirectory() as scratch:
        context, digest = Path(scratch, "context"), Path(scratch, "digest")
        context.mkdir()
        subprocess.run(
            ["tar", "--extract"], cwd=context, input=git(folder, "archive", "--format=tar", "HEAD"), check=True
        )
        # Without a daemon, and in a container: no overlay in an overlay, no namespaces beside the pod's.
        for words in (
            ["build", "--isolation=chroot", "--target=training", f"--tag={tagged}", *registry.options, *volume]
            + [f"--build-arg={key}={value}" for key, value in arguments.items()]
            + [str(context)],
            ["push", *registry.options, f"--digestfile={digest}", tagged],
        ):
            done = _run(["buildah", "--storage-driver=vfs", *words])
            if done.returncode:
                raise BuildFailed(f"buildah {words[0]} of {tagged} ends with {done.returncode}; why stands above")
        return digest.read_text().strip()


def _run(command: list[str], *, capture: bool = False) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(command, check=False, capture_output=capture)
    except OSError as error:
        raise BuildFailed(f"{command[0]} cannot be run: {error.strerror}; the ci image has it") from None
