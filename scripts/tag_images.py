"""``jukebox tag-images``: let later runs find the images of this one."""

from typing import Annotated

import typer

from pipeline.errors import SettingsInvalid
from scripts.registry import AuthFile, Registry, is_pinned


def command(
    pairs: Annotated[str, typer.Argument(help="IMAGE=TAGGED, separated by spaces: an image and the name it gets.")],
    auth_file: AuthFile = None,
) -> None:
    """Give images that are in a registry another tag, in the same repository. Needs skopeo.

    Example: `jukebox tag-images example.com/jukebox-training:mine=example.com/jukebox-training:good`
    """
    registry = Registry(auth_file)
    for pair in pairs.split():
        image, equals, tagged = pair.partition("=")
        if not equals:
            raise SettingsInvalid(f"{pair!r} is not a pair; expected IMAGE=TAGGED")
        if tagged and not is_pinned(image):
            registry.tag(image, tagged)
            print(f"{image} is {tagged}", flush=True)
