"""``jukebox pack-image``: one more layer on an image, without a container and without root."""

import sys
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer

from pipeline.core.errors import BuildFailed
from scripts.clients.registry import Target, is_pinned
from scripts.find_images import Commit
from scripts.layout import Files, Layout


def command(
    image: Annotated[Path, typer.Argument(help="OCI layout of the image to add the layer to.")],
    folder: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
    commit: Annotated[str, typer.Option(help="The commit to pack.")] = "HEAD",
    packages: Annotated[Path | None, typer.Option(help="Pack this folder instead of the commit's code.")] = None,
    at: Annotated[Path, typer.Option(help="Path of that folder in the image.")] = Path("/opt/venv"),
    target: Target = "",
) -> None:
    """Add a layer with the files that the Containerfile copies from a commit, or with a folder of packages.

    It runs none of their code. The same content has the same digest.

    Example: `jukebox pack-image /tmp/image`
    """
    if not is_pinned(target):
        layout = Layout(image)
        print(pack_folder(layout, packages, at) if packages else pack_commit(layout, Commit(folder, commit)))


def pack_commit(layout: Layout, commit: Commit) -> str:
    """Put the files of a commit on the image of a layout, and configure it as the Containerfile says."""
    containerfile = commit.containerfile
    files = Files()
    for source, target in containerfile.copies:
        files.add(commit.files(source), source, target)
    return layout.pack(files, **containerfile.config(environment(layout)))


def pack_folder(layout: Layout, folder: Path, at: Path) -> str:
    """Put a folder on the image of a layout, at the path ``at``; raises BuildFailed if the base has another Python."""
    ours = ".".join(map(str, sys.version_info[:2]))
    theirs = ".".join(environment(layout).get("PYTHON_VERSION", ours).split(".")[:2])
    if theirs != ours:
        raise BuildFailed(
            f"The base image has Python {theirs}, the packages are for Python {ours}: rebuild the tasks' image from "
            "the same base image, and set it as ci-image in the settings"
        )
    return layout.pack_folder(folder, PurePosixPath(at))


def environment(layout: Layout) -> dict[str, str]:
    """The variables of the image of a layout."""
    _, config = layout.read()
    whole: dict[str, Any] = config.get("config", {})
    return dict(variable.split("=", 1) for variable in whole.get("Env") or ())
