"""``jukebox checkout``: one commit of the repository, whatever the folder held before."""

import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pipeline.core.errors import SettingsInvalid
from pipeline.settings import Settings, read_settings
from scripts.git import Clone, GitSecret, commit_time, fetch, git, is_full_hash
from scripts.pins import PIN, read_pin
from scripts.results import ResultDir, write_results

# What the commit's own attributes would have git change, on the way to a file or an archive, stays as it was pushed.
ATTRIBUTES = "* -text -filter -ident -working-tree-encoding -export-ignore -export-subst\n"
# Files that change neither a model nor a cluster; the listener starts no run for a push of these only.
HARMLESS = re.compile(r"\.md$|^LICENSE$|^mkdocs\.yml$|^docs/|^argocd/")


def command(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; its content is deleted first.")],
    commit: Annotated[str, typer.Option(help="Full hash of the commit; default: the head of the branch.")] = "",
    source: Annotated[
        Path | None, typer.Option(help="Checkout to copy it from; default: fetch from the Git host.")
    ] = None,
    reason: Annotated[
        str, typer.Option(help="Reason for the training; only a push is compared with what is released.")
    ] = "",
    git_secret: GitSecret = None,
    result_dir: ResultDir = None,
) -> None:
    """Check out one commit into a folder and print its hash. It can be repeated.

    The settings name the repository and the branches. Git checks every object, and no pushed code runs.

    --result-dir gets, besides the commit and its time, the version that the commit pins for production, and for a push
    two comparisons with the released commit: `pin-changed` is true if the pin differs, `tested` if nothing else does.

    Example: `jukebox checkout /tmp/source --git-secret secret`
    """
    if commit and not is_full_hash(commit):
        raise SettingsInvalid(f"the commit is {commit!r}, expected its full hash of 40 hexadecimal digits")
    if source:
        found = checkout(source.absolute().as_uri(), folder, commit or "HEAD")
        served, changed = None, []
    else:
        settings = read_settings()
        found = checkout(settings.repository, folder, commit or f"refs/heads/{settings.branch}", git_secret)
        served = read_pin(folder).version if (folder / PIN).exists() else None
        changed = changed_since_release(settings, found, git_secret) if reason == "push" else []
    print(git(folder, "log", "-1", "--format=%H %an: %s").decode(errors="replace").strip())
    tested = is_tested(changed)
    if tested:
        print("Only the version for production differs from the released commit: nothing to test or train")
    write_results(
        result_dir,
        commit=found,
        commit_time=commit_time(folder, found),
        served_version=str(served or ""),
        tested=str(tested).lower(),
        pin_changed=str(PIN in changed).lower(),
    )


def checkout(repository: str, folder: Path, reference: str, secret: Path | None = None) -> str:
    """Make ``folder`` hold the commit of ``reference`` and nothing else; return its full hash.

    Raises HostRefuses if it cannot be fetched or is damaged, SettingsInvalid if ``reference`` is the hash of something
    else than a commit, or a link in it leads out of the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _empty(folder)
    except OSError as error:
        raise SettingsInvalid(f"{folder} cannot be created: {error.strerror}; name another folder") from None
    git(folder, "init", "--quiet", "--template=", ".")
    attributes = folder / ".git" / "info" / "attributes"
    attributes.parent.mkdir()
    attributes.write_text(ATTRIBUTES)
    fetch(folder, repository, reference, secret=secret, how="--depth=1", check=True)
    found = git(folder, "rev-parse", "FETCH_HEAD^{commit}").decode().strip()
    if is_full_hash(reference) and found != reference:
        raise SettingsInvalid(f"{reference} is not a commit, expected a commit like {found}")
    git(folder, "checkout", "--quiet", "--force", "--detach", found)
    _require_links_within(folder)
    return found


def changed_since_release(settings: Settings, commit: str, secret: Path | None) -> list[str]:
    """Return the paths in which a commit differs from the tip of production's branch.

    None differs if there is no such branch, as before the first release, or if it has the commit: a rerun of that
    trains again. Raises HostRefuses if one cannot be fetched.
    """
    with TemporaryDirectory() as bare:
        clone = Clone(Path(bare), settings.repository, secret)
        released = clone.tip(settings.prod_branch)
        if not released:
            return []
        clone.fetch(released, commit)
        return [] if clone.is_ancestor(commit, released) else clone.changed(released, commit)


def is_tested(changed: list[str]) -> bool:
    """Tell whether a commit that differs from the released one in these paths needs no test: only its pin counts."""
    return PIN in changed and all(path == PIN or HARMLESS.search(path) for path in changed)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        # A volume of its own may have been formatted with this folder, which is root's.
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif path.name != "lost+found":
            shutil.rmtree(path)


def _require_links_within(folder: Path) -> None:
    entries = git(folder, "ls-tree", "-r", "-z", "--full-tree", "HEAD").decode(errors="surrogateescape").split("\0")
    root = folder.resolve()
    for name in (entry.partition("\t")[2] for entry in entries if entry.startswith("120000 ")):
        try:
            within = (folder / name).resolve().is_relative_to(root)
        except (OSError, RuntimeError):  # a circle
            within = False
        if not within:
            raise SettingsInvalid(f"the commit's {name!r} is a symbolic link out of the repository: remove it")
