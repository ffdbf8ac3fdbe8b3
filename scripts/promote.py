"""``jukebox promote``: propose a published model for production."""

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Id of the run that published the model.")],
) -> None:
    """Print what a promotion would do. It is not implemented yet.

    A promotion is a pull request that pins the version of the run's model in production's overlay. Merging it serves
    the version, and reverting the merge rolls it back. Nothing else changes what production serves.

    Example: `jukebox promote 6f1c3c2e-…`
    """
    print(
        f"Promotion is not implemented yet. For run {run}, it would open a pull request that pins the run's model "
        "version in manifests/overlays/<platform>/prod. Merging the pull request would serve that version."
    )
