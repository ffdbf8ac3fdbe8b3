"""``jukebox withdraw``: see to it that a version is neither proposed nor served."""

from typing import Annotated

import typer

from pipeline.core.errors import SettingsInvalid
from pipeline.core.store import open_store
from pipeline.core.texts import one_line
from pipeline.settings import Settings, read_settings
from scripts.git import GitSecret
from scripts.promotion_body import text
from scripts.proposals import Kind, Proposals, has_token, proposals
from scripts.verify import is_readable


def command(
    number: Annotated[int, typer.Argument(min=1, help="Number of the version.")],
    reason: Annotated[str, typer.Option(help="Why, in one line.")],
    git_secret: GitSecret = None,
    model_store: Annotated[
        str, typer.Option(help="A folder or s3://bucket/prefix; default: that of the settings.")
    ] = "",
) -> None:
    """Withdraw a version: close its open proposal with the reason, and mark it in the model store.

    A version that is marked is neither proposed nor served. A proposal that was closed is not opened again unless a
    person says so. What production serves stays until a rollback is merged.

    Example: `jukebox withdraw 7 --reason "trained on rows with wrong labels" --git-secret secret`
    """
    settings = read_settings()
    if not one_line(reason):
        raise SettingsInvalid("the reason is empty, expected a line of text: it is what others will read")
    done, pinned = [*_mark(settings, model_store or settings.model_store, number, reason)], None
    if has_token(settings, git_secret):
        with proposals(settings, git_secret) as proposed:
            done += withdraw(proposed, number, reason)
            pinned = proposed.base().pin.version
    if pinned == number:
        done.append(f"Production's pin has version {number}: roll it back with `jukebox rollback`.")
    if not done:
        raise SettingsInvalid(
            f"Version {number} is not withdrawn: the model store cannot be read from here, and no open pull request "
            "proposes it. Run this where the store is mounted, or name the store with --model-store"
        )
    print("\n".join(done))


def withdraw(proposed: Proposals, number: int, reason: str) -> list[str]:
    """Close each open proposal of a version; return what was done, in sentences. Raises HostRefuses."""
    done = []
    for kind in Kind:
        found = proposed.find(kind)
        if found.open and found.pin and found.pin.version == number:
            proposed.close(found.open, f"Version {number} is withdrawn: {text(reason)}")
            done.append(f"{found.open.url} is closed.")
    return done


def _mark(settings: Settings, root: str, number: int, reason: str) -> list[str]:
    if not is_readable(root):
        return []
    new = open_store(root, settings.model_name).withdraw(number, reason)
    return [f"Version {number} is marked as withdrawn." if new else f"Version {number} was withdrawn before."]
