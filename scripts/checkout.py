"""``jukebox checkout``: one commit of the repository, whatever the folder held before."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import SettingsInvalid
from scripts.git import TokenFile, fetch, git, is_full_hash
from scripts.results import ResultDir, write_results


def command(
    repository: Annotated[str, typer.Argument(help="Address that git clones from.")],
    folder: Annotated[Path, typer.Argument(help="Where to; what else it holds goes.")],
    branch: Annotated[str, typer.Option(help="Its head is taken where no commit is named.")] = "main",
    commit: Annotated[str, typer.Option(help="Full hash of the commit; else the head of the branch.")] = "",
    token_file: TokenFile = None,
    result_dir: ResultDir = None,
) -> None:
    """Check out one commit into a folder, as often as you like, and print it.

    Example: `jukebox checkout https://github.com/you/jukebox /tmp/source --branch main --token-file token`
    """
    if commit and not is_full_hash(commit):
        raise SettingsInvalid(f"the commit is {commit!r}, expected its full hash of 40 hexadecimal digits")
    found = checkout(repository, folder, commit or f"refs/heads/{branch}", token_file)
    print(git(folder, "log", "-1", "--format=%H %an: %s").decode(errors="replace").strip())
    write_results(result_dir, commit=found)


def checkout(repository: str, folder: Path, reference: str, token_file: Path | None = None) -> str:
    """Make ``folder`` hold the commit of ``reference`` and nothing else; return its full hash."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsInvalid(f"{folder} cannot be made: {error.strerror}; name another folder") from None
    git(folder, "init", "--quiet", ".")
    fetch(folder, repository, reference, token_file=token_file, how="--depth=1")
    git(folder, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
    # A volume of its own may have been formatted with this folder, which is root's.
    git(folder, "clean", "--quiet", "-dffx", "--exclude=/lost+found")
    return git(folder, "rev-parse", "HEAD").decode().strip()
