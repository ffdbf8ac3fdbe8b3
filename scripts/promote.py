"""``jukebox promote``: propose a published model for production."""

from typing import Annotated

import typer


def command(
    run: Annotated[str, typer.Argument(help="Id of the run that published the model.")],
) -> None:
    """Say what a promotion would do; it does nothing yet.

    A promotion is a pull request that pins the version of the run's model in the overlay of production. Merging it
    serves the version, reverting the merge rolls it back; nothing else may write what production serves.

    Example: `jukebox promote 6f1c3c2e-…`
    """
    print(
        f"Promotion is not implemented yet. That of run {run} would open a pull request that pins the version of the "
        "model that it has published in manifests/overlays/<platform>/prod; merging that serves it."
    )
