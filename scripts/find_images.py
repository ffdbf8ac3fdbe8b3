"""``jukebox find-images``: which images of a commit the registry has, and what the missing ones are made of."""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import RegistryRefuses
from scripts import install_packages
from scripts.containerfile import Containerfile
from scripts.git import git
from scripts.registry import AuthFile, Registry, is_pinned, repository_of
from scripts.results import ResultDir, write_results

LOCK = "requirements.lock"
PRODUCT = Path(__file__).parents[1]


def command(
    image: Annotated[str, typer.Argument(help="Repository of the training image, without a tag.")],
    ci_image: Annotated[str, typer.Option(help="The image of the tasks, from the settings.")],
    run: Annotated[str, typer.Option(help="What the tags of images that are built now are named by.")],
    base_image: Annotated[str, typer.Option(help="Base image; empty: that of the Containerfile.")] = "",
    folder: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
    auth_file: AuthFile = None,
    result_dir: ResultDir = None,
) -> None:
    """Look for the images of the checkout's commit: its training image, the packages below it, and the tasks' image.

    Each is known by a tag that is the hash of what it is made of. Needs skopeo, and runs nothing of the commit.

    Example: `jukebox find-images example.com/jukebox-training --ci-image example.com/jukebox-ci --run mine`
    """
    commit, registry = Commit(folder), Registry(auth_file)
    base, ci_base = pinned(base_image or commit.containerfile.base, registry), ""
    packages = look(image, f"deps-{commit.packages_key(base)}", f"{run}-deps", registry)
    code = look(image, commit.image_key(base), run, registry)
    tasks = Found(ci_image, "", "false")
    if not commit.locks_what_runs_here():
        ci_base = pinned(ci_image, registry)
        tasks = look(repository_of(ci_image), f"ci-{commit.lock_key(ci_base)}", f"{run}-ci", registry)
    found = {"training image": code, "packages": packages, "image of the tasks": tasks}
    for name, each in found.items():
        print(f"{name}: {each.reference}{' must be built' if each.missing == 'true' else ''}")
    write_results(
        result_dir,
        base_image=base,
        dependencies=packages.reference,
        dependencies_tag=packages.tagged,
        dependencies_missing=packages.missing,
        image=code.reference,
        image_tag=code.tagged,
        ci_image=tasks.reference,
        ci_image_tag=tasks.tagged,
        ci_image_missing=tasks.missing,
        ci_base_image=ci_base,
        images_missing=max(each.missing for each in found.values()),
    )


@dataclass(frozen=True)
class Found:
    """An image.

    Attributes:
        reference: by digest if the registry has it, else with the tag that this run pushes it with.
        tagged: the same by the tag that later runs find it by; empty if they do not look for it.
        missing: ``true`` if it must be built, else ``false``.
    """

    reference: str
    tagged: str
    missing: str


def look(repository: str, tag: str, own: str, registry: Registry) -> Found:
    """Look for the image of a tag; one that is missing is pushed as ``own`` until its tests have passed."""
    digest = registry.digest(f"{repository}:{tag}")
    reference = f"{repository}@{digest}" if digest else f"{repository}:{own}"
    return Found(reference, f"{repository}:{tag}", "false" if digest else "true")


@dataclass(frozen=True)
class Commit:
    """The commit that is checked out in ``folder``: what git has, not what else lies there."""

    folder: Path

    def read(self, name: str) -> bytes:
        """Return a file."""
        return git(self.folder, "show", f"HEAD:{name}")

    @property
    def containerfile(self) -> Containerfile:
        """What is said of its training image."""
        return Containerfile(self.read("Containerfile"))

    def packages_key(self, base: str) -> str:
        """The hash of what the packages of the training image are made of: 16 hexadecimal digits.

        These are the lock, the names of the packages, how they are installed, and the base image by digest.
        """
        names = tomllib.loads(self.read("pyproject.toml").decode())["project"]["dependencies"]
        return _hash(self.read(LOCK), "\n".join(names).encode(), _recipe(), base.partition("@")[2].encode())

    def image_key(self, base: str) -> str:
        """The hash of what the training image is made of: packages, and what the Containerfile says and copies."""
        sources = [str(source) for source, _ in self.containerfile.copies]
        tree = git(self.folder, "ls-tree", "-r", "-z", "--full-tree", "HEAD", "Containerfile", *sources)
        return _hash(self.packages_key(base).encode(), tree)

    def lock_key(self, ci_image: str) -> str:
        """The hash of what the tasks' image of this lock is made of."""
        return _hash(self.read(LOCK), _recipe(), ci_image.partition("@")[2].encode())

    def locks_what_runs_here(self) -> bool:
        """Whether the commit's lock is the one that this program was installed with."""
        return self.read(LOCK) == (PRODUCT / LOCK).read_bytes()


def pinned(reference: str, registry: Registry) -> str:
    """Return an image by digest; raises RegistryRefuses if there is no such image."""
    if is_pinned(reference):
        return reference
    if digest := registry.digest(reference):
        return f"{repository_of(reference)}@{digest}"
    raise RegistryRefuses(f"The registry has no {reference}. Check base-image and ci-image in the settings.")


def _recipe() -> bytes:
    return Path(install_packages.__file__).read_bytes()


def _hash(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:16]
