"""Which images product code has built, in the ConfigMap ``jukebox-images``: by their tags, what they were.

A tag names what an image shall be made of, and whoever may write to the registry may let it name anything.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from pipeline.core.errors import SettingsInvalid
from scripts.clients.kubernetes_api import CONFIG_MAPS, Cluster, Resource, again_while_outrun

NAME = "jukebox-images"
LIMIT = 2000  # of its entries, of some 200 bytes: a ConfigMap holds a MiB


def read_records(cluster: Cluster) -> dict[str, str]:
    """Return the recorded digest of each tag."""
    return {tag: value.partition(" ")[0] for tag, value in _data(_read(cluster)).items()}


def record_times(cluster: Cluster) -> dict[str, datetime]:
    """Return when the digest of each tag was recorded."""
    return {tag: datetime.fromisoformat(value.partition(" ")[2]) for tag, value in _data(_read(cluster)).items()}


def add_records(cluster: Cluster, digests: Mapping[str, str]) -> None:
    """Record digests by their tags; beyond ``LIMIT`` the oldest are deleted, and their images are built again."""

    def attempt() -> None:
        found = _read(cluster)
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        data: dict[str, str | None] = {tag: f"{digest} {now}" for tag, digest in digests.items()}
        others = sorted((value.partition(" ")[2], tag) for tag, value in _data(found).items() if tag not in data)
        data |= {tag: None for _, tag in others[: max(0, len(others) + len(data) - LIMIT)]}
        version = {"resourceVersion": found["metadata"]["resourceVersion"]}
        cluster.patch(CONFIG_MAPS, NAME, {"metadata": version, "data": data})

    again_while_outrun(attempt)


def _read(cluster: Cluster) -> Resource:
    found = cluster.read(CONFIG_MAPS, NAME)
    if found is None:
        raise SettingsInvalid(
            f"There is no ConfigMap {NAME} in {cluster.namespace}: run `jukebox bootstrap`, which creates it"
        )
    return found


def _data(found: Resource) -> dict[str, str]:
    return found.get("data") or {}
