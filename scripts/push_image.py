"""``jukebox push-image``: send what a registry lacks of an image."""

from pathlib import Path
from typing import Annotated

import typer

from scripts.clients.registry import AuthFile, Registry, is_pinned, repository_of
from scripts.layout import Layout
from scripts.results import ResultDir, write_results


def command(
    folder: Annotated[Path, typer.Argument(help="OCI layout of the image.")],
    image: Annotated[str, typer.Argument(help="Image to push to, with its tag. With a digest, nothing is pushed.")],
    compress: Annotated[bool, typer.Option(help="Compress uncompressed layers with zstd.")] = False,
    auth_file: AuthFile = None,
    result_dir: ResultDir = None,
) -> None:
    """Push the image of an OCI layout, which may lack layers that the registry has. Needs skopeo.

    Example: `jukebox push-image /tmp/image registry.example.com/jukebox-training:mine`
    """
    reference = image
    if not is_pinned(image):
        digest = Registry(auth_file).push(Layout(folder), image, compress=compress)
        reference = f"{repository_of(image)}@{digest}"
    print(reference)
    write_results(result_dir, image=reference)
