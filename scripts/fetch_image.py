"""``jukebox fetch-image``: what a layer is put on."""

from pathlib import Path
from typing import Annotated

import typer

from scripts.clients.registry import AuthFile, Registry, Target, is_pinned, repository_of
from scripts.layout import Layout


def command(
    image: Annotated[str, typer.Argument(help="The image.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write the OCI layout to.")],
    target: Target = "",
    auth_file: AuthFile = None,
) -> None:
    """Fetch an image into a folder, without the layers that the target's registry has. Needs skopeo.

    If the target is in the same repository, no layers are fetched.

    Example: `jukebox fetch-image example.com/training:deps-0123 /tmp/image --target example.com/training:mine`
    """
    if is_pinned(target):
        print(f"{target} exists: nothing to build")
        return
    registry, layout = Registry(auth_file), Layout(folder)
    folder.mkdir(parents=True, exist_ok=True)
    elsewhere = repository_of(target) != repository_of(image)
    (registry.copy if elsewhere else registry.fetch)(image, layout)
    manifest, _ = layout.read()
    print(f"{image} has {len(manifest['layers'])} layers")
