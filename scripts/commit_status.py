"""``jukebox commit-status``: show beside a commit, on its Git host, what became of it."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.settings import read_settings
from scripts.clients.git_hosts import CONTEXT, connect
from scripts.git import GitSecret, token_file
from scripts.outcome import Last, PipelineRun, Served, State, SupersededBy, Tests, link, look_up, outcome


def command(
    commit: Annotated[str, typer.Argument(help="Full hash of the commit.")],
    state: Annotated[State, typer.Argument(help="The new state; Tekton's statuses are accepted too.")],
    git_secret: GitSecret = None,
    last: Last = State.SUCCESS,
    tests: Tests = State.SUCCESS,
    served: Served = State.SUCCESS,
    superseded_by: SupersededBy = "",
    description: Annotated[str, typer.Option(help="One line to show next to the state.")] = "",
    pipeline_run: PipelineRun = "",
) -> None:
    """Set the status of a commit on the Git host. Without a token, it only prints a message.

    The status includes the cause if the run failed, a link to the run's page if the settings have one, and whether the
    CI image is stale. The settings name the repository, its Git host and the page.

    Example: `jukebox commit-status 0a1b… success --git-secret secret --description "Published 7"`
    """
    settings = read_settings()
    file = token_file(git_secret, settings.repository)
    if not file:
        print(f"The commit status was not set: {git_secret} contains no token")
        return
    word, phrase = outcome(state, last, superseded_by, tests, served)
    told = look_up(pipeline_run, settings)
    what = f"{description} {phrase}".strip()
    # The cause comes first: there is room for little.
    why = told.why if word in (State.FAILURE, State.ERROR) else ""
    connect(settings, read_secret(file)).set_status(
        commit,
        word,
        (f"{why} ({what})" if why else what) + told.notice,
        link(settings.run_page, pipeline_run, told),
    )
    print(f"{CONTEXT} of {commit[:12]} is {word}: {phrase}")


def read_secret(file: Path) -> str:
    """The one line in a file, or nothing if it is missing: a Secret may be optional."""
    return file.read_text().strip() if file.is_file() else ""
