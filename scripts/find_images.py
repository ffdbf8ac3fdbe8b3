"""``jukebox find-images``: which images of a commit the registry has, and what the missing ones are made of."""

import hashlib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from pipeline.core.contract import folder_of
from pipeline.core.errors import BuildFailed, RegistryRefuses
from pipeline.core.texts import one_line
from pipeline.settings import SETTINGS_FILE, model_in, read_settings
from scripts import install_packages
from scripts.clients.kubernetes_api import ci_cluster
from scripts.clients.registry import AuthFile, Registry, repository_of
from scripts.containerfile import Containerfile
from scripts.git import git
from scripts.image_records import read_records
from scripts.layout import LIMIT
from scripts.outcome import REBUILD
from scripts.results import ResultDir, write_results

LOCK = "requirements.lock"
PRODUCT = Path(__file__).parents[1]
COMMANDS = PurePosixPath("scripts")
LONGEST = 300  # characters of a result; Tekton keeps 4096 bytes of all results of a task


def command(
    run: Annotated[str, typer.Option(help="Prefix of the tags of newly built images.")],
    folder: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
    auth_file: AuthFile = None,
    result_dir: ResultDir = None,
) -> None:
    """Find the images of the checkout's commit: its training image, the packages below it, and the tasks' image.

    The tag of each is a hash of its inputs. An image is used only if its digest is the recorded one. Needs skopeo, and
    runs no code of the commit. The settings name the images and the base image.

    Example: `jukebox find-images --run mine`
    """
    settings, commit, registry = read_settings(), Commit(folder), Registry(auth_file)
    shelf = Shelf(registry, read_records(ci_cluster(settings)))
    image, ci_image = settings.image, settings.ci_image
    base, ci_base = pinned(settings.base_image or commit.containerfile.base, registry), ""
    packages = shelf.look(image, f"deps-{commit.packages_key(base)}", f"{run}-deps")
    code = shelf.look(image, commit.image_key(base), run)
    tasks = Found(ci_image, "", "false")
    if not commit.locks_what_runs_here():
        ci_base = pinned(ci_image, registry)
        tasks = shelf.look(repository_of(ci_image), f"ci-{commit.lock_key(ci_base)}", f"{run}-ci")
    if stale := commit.stale():
        print(f"Warning: the CI image is stale: the commit has different versions of {stale}. {REBUILD}")
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
        ci_image_stale=stale,
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


@dataclass(frozen=True)
class Shelf:
    """The images of a registry, and the digests that are recorded of their tags."""

    registry: Registry
    records: Mapping[str, str]

    def look(self, repository: str, tag: str, own: str) -> Found:
        """Look for the image of a tag; one that is missing is pushed as ``own`` until its tests have passed.

        What another than the recorded image bears the tag of is missing, too.
        """
        tagged = f"{repository}:{tag}"
        digest, recorded = self.registry.digest(tagged), self.records.get(tag)
        if digest and digest == recorded:
            return Found(f"{repository}@{digest}", tagged, "false")
        if digest:
            print(f"{tagged} is {digest}, recorded is {recorded or 'none'}: it is not used; the image is built again")
        return Found(f"{repository}:{own}", tagged, "true")


@dataclass(frozen=True)
class Commit:
    """A commit in the checkout in ``folder``: what git has, not what else lies there."""

    folder: Path
    name: str = "HEAD"

    def read(self, name: str) -> bytes:
        """Return a file."""
        return git(self.folder, "cat-file", "blob", f"{self.name}:{name}")

    def files(self, source: PurePosixPath) -> Iterator[tuple[PurePosixPath, str, bytes]]:
        """Yield path, mode (100644 and 100755 are files) and content of what is at or below ``source``.

        As git has it: an archive would be what the commit's attributes make of it.
        """
        for entry in self._entries([str(source)], "-l"):
            about, _, path = entry.partition(b"\t")
            mode, kind, blob, size = about.decode().split()
            if kind == "blob" and int(size) > LIMIT:
                raise BuildFailed(f"{source} holds more than {LIMIT} bytes; data does not belong in the image")
            content = git(self.folder, "cat-file", "blob", blob) if kind == "blob" else b""
            yield PurePosixPath(os.fsdecode(path)), mode, content

    def _entries(self, paths: Sequence[str], *options: str) -> list[bytes]:
        """What git lists of paths; without what makes a model's sample, which no run needs."""
        found = git(self.folder, "ls-tree", "-r", *options, "-z", "--full-tree", self.name, "--", *paths)
        sample = f"\tpipeline/models/{self.model}/sample.py".encode()
        return [entry for entry in found.split(b"\0") if entry and not entry.endswith(sample)]

    @cached_property
    def model(self) -> str:
        """The folder of the model that its own settings name, as its pipeline is compiled from them."""
        return folder_of(model_in(self.read(str(SETTINGS_FILE.relative_to(PRODUCT)))))

    @property
    def containerfile(self) -> Containerfile:
        """What is said of its training image."""
        return Containerfile(self.read("Containerfile"), self.model)

    def packages_key(self, base: str) -> str:
        """The hash of what the packages of the training image are made of.

        These are the lock, the names of the packages, how they are installed, and the base image by digest.
        """
        names = tomllib.loads(self.read("pyproject.toml").decode())["project"]["dependencies"]
        return _hash(self.read(LOCK), "\n".join(names).encode(), _recipe(), base.partition("@")[2].encode())

    def image_key(self, base: str) -> str:
        """The hash of what the training image is made of: packages, and what the Containerfile says and copies."""
        sources = [str(source) for source, _ in self.containerfile.copies]
        return _hash(self.packages_key(base).encode(), *self._entries(["Containerfile", *sources]))

    def lock_key(self, ci_image: str) -> str:
        """The hash of what the tasks' image of this lock is made of."""
        return _hash(self.read(LOCK), _recipe(), ci_image.partition("@")[2].encode())

    def locks_what_runs_here(self) -> bool:
        """Whether the commit's lock is the one that this program was installed with."""
        return self.read(LOCK) == (PRODUCT / LOCK).read_bytes()

    def stale(self) -> str:
        """The commands' files, and the lock, that are others in this commit than where this program runs, as a line."""
        theirs = {str(path): content for path, _, content in self.files(COMMANDS) if path.suffix == ".py"}
        ours = {str(path.relative_to(PRODUCT)): path.read_bytes() for path in (PRODUCT / COMMANDS).rglob("*.py")}
        other = sorted(path for path in theirs.keys() | ours.keys() if theirs.get(path) != ours.get(path))
        other += [] if self.locks_what_runs_here() else [LOCK]
        return one_line(f"{', '.join(other[:3])}{' and more' if other[3:] else ''}")[:LONGEST]


def pinned(reference: str, registry: Registry) -> str:
    """Return an image by digest, without a tag; raises RegistryRefuses if there is no such image."""
    if digest := reference.partition("@")[2] or registry.digest(reference):
        return f"{repository_of(reference)}@{digest}"
    raise RegistryRefuses(f"The registry has no {reference}. Check base-image and ci-image in the settings.")


def _recipe() -> bytes:
    return Path(install_packages.__file__).read_bytes()


def _hash(*parts: bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()
