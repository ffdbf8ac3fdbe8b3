"""``jukebox withdraw``: see to it that a version is neither proposed nor served."""

from typing import Annotated

import typer

from pipeline.core.errors import SettingsInvalid, StoreBroken, VersionBroken
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
    marked, not_marked = _mark(settings, model_store or settings.model_store, number, reason)
    done, pinned = [marked] if marked else [], None
    if has_token(settings, git_secret):
        with proposals(settings, git_secret) as proposed:
            done += withdraw(proposed, number, reason)
            pinned = proposed.base().pin.version
    if pinned == number:
        done.append(f"Production's pin has version {number}: roll it back with `jukebox rollback`.")
    if not done:
        raise SettingsInvalid(
            f"Version {number} is not withdrawn: {not_marked}, and no open pull request proposes it. Run this where "
            "the store can be read, or name the store with --model-store"
        )
    print("\n".join(done))
    if not_marked:
        print(f"Version {number} is not marked: {not_marked}. Run this once more where the store can be read.")


def withdraw(proposed: Proposals, number: int, reason: str) -> list[str]:
    """Close each open proposal of a version; return what was done, in sentences. Raises HostRefuses."""
    done = []
    for kind in Kind:
        found = proposed.find(kind)
        if found.open and found.pin and found.pin.version == number:
            proposed.close(found.open, f"Version {number} is withdrawn: {text(reason)}")
            done.append(f"{found.open.url} is closed.")
    return done


def _mark(settings: Settings, root: str, number: int, reason: str) -> tuple[str, str]:
    """Mark a version as withdrawn; return in a sentence what was done, or else why nothing was."""
    if not is_readable(root):
        return "", f"the model store {root} is not here"
    try:
        new = open_store(root, settings.model_name).withdraw(number, reason)
    except VersionBroken:
        raise
    except StoreBroken as error:  # such as a bucket without its keys: the proposal can be closed all the same
        return "", one_line(str(error)).rstrip(".")
    return f"Version {number} is marked as withdrawn." if new else f"Version {number} was withdrawn before.", ""
