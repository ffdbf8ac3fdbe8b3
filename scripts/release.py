"""``jukebox release``: move the branch that production follows to a commit whose tests have passed."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pipeline.core.errors import HostRefuses, SettingsInvalid
from pipeline.settings import Settings, read_settings
from scripts.git import Clone, GitSecret, is_full_hash

ATTEMPTS = 5  # of a push that another release may outrun


def command(
    commit: Annotated[str, typer.Argument(help="Full hash of the commit.")],
    git_secret: GitSecret = None,
) -> None:
    """Move the branch that production follows forward to a commit, or create it. It can be repeated.

    The settings name the repository and the branches. The branch moves only forward: if it already contains the commit,
    nothing changes, and if the commit does not descend from it, that is an error. Without a cluster for production,
    nothing is released.

    Example: `jukebox release 0a1b… --git-secret secret`
    """
    settings = read_settings()
    if not is_full_hash(commit):
        raise SettingsInvalid(f"the commit is {commit!r}, expected its full hash of 40 hexadecimal digits")
    if not settings.prod_cluster:
        print("Nothing is released: the settings have no prod-cluster")
        return
    with TemporaryDirectory() as bare:
        print(release(Clone(Path(bare), settings.repository, git_secret), settings, commit))


def release(clone: Clone, settings: Settings, commit: str) -> str:
    """Move production's branch to ``commit``; return what was done, in a sentence.

    Raises HostRefuses if the host refuses, or other releases outrun this one again and again; SettingsInvalid if the
    commit is not on the branch to train from, or does not descend from the released one.
    """
    branch = settings.prod_branch
    for _ in range(ATTEMPTS):
        tip, head = clone.tip(branch), clone.tip(settings.branch)
        clone.fetch(*filter(None, dict.fromkeys((commit, tip, head))))
        if tip and clone.is_ancestor(commit, tip):
            return f"{branch} contains {commit[:12]} already; it is at {tip[:12]}"
        if not head or not clone.is_ancestor(commit, head):
            raise SettingsInvalid(
                f"{commit[:12]} is not on {settings.branch} any more: push it again, or push what replaces it"
            )
        if tip and not clone.is_ancestor(tip, commit):
            raise SettingsInvalid(
                f"{branch} is at {tip[:12]}, and {commit[:12]} does not descend from it: the history of "
                f"{settings.branch} was rewritten, or something else was pushed to {branch}. If {branch} may lose what "
                f"it has, run: git push --force-with-lease={branch}:{tip} origin {commit}:refs/heads/{branch}"
            )
        if clone.push(branch, commit, tip):
            return f"{branch} is at {commit[:12]} now; " + (f"it was at {tip[:12]}" if tip else "it is new")
    raise HostRefuses(f"{branch} was moved by others {ATTEMPTS} times meanwhile: run the task again")
