"""``jukebox tag-images``: let later runs find the images of this one."""

from typing import Annotated

import typer

from pipeline.core.errors import RegistryRefuses, SettingsInvalid
from pipeline.settings import read_settings
from scripts.clients.kubernetes_api import ci_cluster
from scripts.clients.registry import AuthFile, Registry, is_pinned, repository_of
from scripts.image_records import add_records, read_records


def command(
    pairs: Annotated[str, typer.Argument(help="Pairs IMAGE=TAGGED, separated by spaces: an image and its new name.")],
    auth_file: AuthFile = None,
) -> None:
    """Add tags to images in a registry, in the same repository, and record their digests. Needs skopeo.

    Example: `jukebox tag-images example.com/jukebox-training:mine=example.com/jukebox-training:good`
    """
    registry, cluster = Registry(auth_file), ci_cluster(read_settings())
    records, new = read_records(cluster), {}
    for pair in pairs.split():
        image, equals, tagged = pair.partition("=")
        if not equals:
            raise SettingsInvalid(f"{pair!r} is not a valid pair; expected IMAGE=TAGGED")
        if not tagged:
            continue
        # One digest for both, also if the tag of the image moves in between.
        digest = image.partition("@")[2] if is_pinned(image) else registry.digest(image)
        if not digest:
            raise RegistryRefuses(f"The registry has no {image}. The task that builds it pushes it")
        tag = tagged.rpartition(":")[2]
        if records.get(tag) != digest or registry.digest(tagged) != digest:
            registry.tag(f"{repository_of(image)}@{digest}", tagged)
            new[tag] = digest
            print(f"{image} is {tagged}", flush=True)
    if new:
        add_records(cluster, new)
