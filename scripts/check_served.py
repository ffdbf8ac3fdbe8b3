"""``jukebox check-served``: compare what production answers with what the version's verification kept."""

import json
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from pipeline.core.champion import GOLDEN, read_files
from pipeline.core.errors import ModelServerRefuses, VersionBroken
from pipeline.core.store import ModelStore, open_store
from pipeline.settings import read_settings
from pipeline.steps.verify_model import ABSOLUTE, RELATIVE
from scripts.clients.model_server import find_served, send
from scripts.verify import Model, Store, number_of

PAUSE = 2  # seconds between two looks whether the version is served


def command(
    version: Annotated[str, typer.Option(help="The version's number.")],
    url: Annotated[str, typer.Option(help="The address of the model server.")],
    model: Model = "",
    model_store: Store = "",
    minutes: Annotated[float, typer.Option(min=0, help="How long to wait until the version is served.")] = 10,
) -> None:
    """Send the version's golden request to the model server, and compare the answer with the one that was verified.

    The store keeps both in golden.json. Argo CD runs this after a sync.

    Example: `jukebox check-served --version 7 --url http://localhost:8888 --model-store build/models`
    """
    name, root = model or read_settings().model_name, model_store or read_settings().model_store
    number = number_of(version)
    golden = read_golden(open_store(root, name), number)
    retrying = Retrying(
        stop=stop_after_delay(minutes * 60),
        wait=wait_fixed(PAUSE),
        retry=retry_if_exception_type(ModelServerRefuses),
        reraise=True,
    )
    answer = retrying(_ask, url, name, number, golden and golden["request"])
    if golden is None:
        print(f"{url} serves version {number}; an older release published it, without {GOLDEN} to compare answers with")
        return
    difference = compare(_outputs(golden["response"]), answer, url, number)
    print(f"{url} serves version {number}, and answers its golden request as verified: at most {difference:.1e} away")


def read_golden(store: ModelStore, number: int) -> dict[str, Any] | None:
    """Return the request and the response that the version keeps; None if an older release published it, without any.

    Raises VersionBroken, with what to do, if the version is damaged.
    """
    _, files = read_files(store, number)
    if GOLDEN not in files:
        return None
    try:
        golden: dict[str, Any] = json.loads(files[GOLDEN])
        _outputs(golden["response"])
        golden["request"]["inputs"]
    except (ValueError, TypeError, KeyError) as error:
        raise VersionBroken(
            f"{store.uri(number)}/{GOLDEN} is not a request with its response ({type(error).__name__}: {error}). "
            "Restore the version's files as they were published"
        ) from None
    return golden


def _ask(url: str, name: str, number: int, request: dict[str, Any] | None) -> Any:
    """Ask which version is served, and send a request to it if there is one."""
    find_served(url, name, number)
    return request and send(url, name, number, request)


def compare(expected: dict[str, NDArray[np.float64]], answer: dict[str, Any], url: str, number: int) -> float:
    """Return the greatest absolute difference between the outputs of an answer and the expected ones.

    A number may differ by ``ABSOLUTE`` times the size of its output (its greatest number, and at least 1), or by
    ``RELATIVE`` times its own, whichever is more. Raises ModelServerRefuses if one differs by more, or if outputs or
    shapes are other ones.
    """
    try:
        found = _outputs(answer)
    except (ValueError, TypeError, KeyError) as error:
        raise _wrong(url, number, f"what is not a valid response ({type(error).__name__}: {error})") from None
    shapes, wanted = ({name: list(each.shape) for name, each in outputs.items()} for outputs in (found, expected))
    if shapes != wanted:
        raise _wrong(url, number, f"outputs of the shapes {shapes}, expected {wanted}")
    greatest = 0.0
    for name, values in expected.items():
        difference = np.abs(found[name] - values)
        allowed = np.maximum(ABSOLUTE * max(1, np.abs(values).max(initial=0)), RELATIVE * np.abs(values))
        # Not a number is never within.
        if not (difference <= allowed).all():
            worst = np.unravel_index(np.nan_to_num(difference - allowed, nan=np.inf).argmax(), values.shape)
            raise _wrong(
                url,
                number,
                f"{found[name][worst]:.7g} in {name}, expected {values[worst]:.7g} within {allowed[worst]:.1e}",
            )
        greatest = max(greatest, float(difference.max(initial=0)))
    return greatest


def _outputs(response: dict[str, Any]) -> dict[str, NDArray[np.float64]]:
    """The outputs of a response of the Open Inference Protocol by their names."""
    return {each["name"]: np.array(each["data"], np.float64).reshape(each["shape"]) for each in response["outputs"]}


def _wrong(url: str, number: int, what: str) -> ModelServerRefuses:
    return ModelServerRefuses(
        f"{url} answers the golden request of version {number} with {what}.\n"
        "It does not compute as the pipeline verified. Pin the version that was served before: `jukebox rollback`."
    )
