"""The model server's REST API: of the Open Inference Protocol, version 2, what commands need."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray

from pipeline.core.contract import INPUT
from pipeline.core.errors import ModelServerRefuses
from pipeline.core.kinds import Kind
from scripts.clients.pipeline_server import TIMEOUT, address, find_credentials, said

ADDS_UP = 1e-3  # a softmax in bfloat16, too

_READY = "Check that the model is ready (kubectl get inferenceservice), and try again."
_LOG_IN = "Log in (oc login) with an account that may read the InferenceService."


def find_served(endpoint: str, model_name: str, version: int = 0) -> int:
    """Return the number of the version that the model server at ``endpoint`` answers with: ``version``, or the newest.

    Raises SettingsInvalid if ``endpoint`` is not an address, ModelServerRefuses if it does not serve that.
    """
    answer = _ask(endpoint, f"/v2/models/{model_name}")
    try:
        versions = sorted(map(int, answer.json()["versions"]))
    except (ValueError, TypeError, KeyError) as error:
        raise _no_answer(answer, "list of versions", error) from None
    if not versions or version not in (0, *versions):
        raise ModelServerRefuses(
            f"{answer.url} serves {', '.join(f'version {each}' for each in versions) or 'no version'}, expected "
            f"{f'version {version}' if version else 'one'}.\n{_READY}"
        )
    return version or versions[-1]


def infer(
    endpoint: str, model_name: str, version: int, vectors: NDArray[np.float32], kind: Kind
) -> NDArray[np.float32]:
    """Ask the model server at ``endpoint`` about float32[examples, features]; return float32[examples, labels].

    Raises SettingsInvalid if ``endpoint`` is not an address, ModelServerRefuses if there is no answer of that ``kind``.
    """
    tensor = {"name": INPUT, "shape": vectors.shape, "datatype": "FP32", "data": vectors.ravel().tolist()}
    answer = _ask(endpoint, f"/v2/models/{model_name}/versions/{version}/infer", {"inputs": [tensor]})
    return _read(answer, len(vectors), kind)


def send(endpoint: str, model_name: str, version: int, request: Mapping[str, Any]) -> Any:
    """Send a request of the Open Inference Protocol to the model server at ``endpoint``; return the response's JSON.

    Raises SettingsInvalid if ``endpoint`` is not an address, ModelServerRefuses if there is no response.
    """
    answer = _ask(endpoint, f"/v2/models/{model_name}/versions/{version}/infer", request)
    try:
        return answer.json()
    except ValueError as error:
        raise _no_answer(answer, "response", error) from None


def _ask(endpoint: str, path: str, body: Mapping[str, Any] | None = None) -> requests.Response:
    """GET, or POST ``body``."""
    host = address(endpoint, "the endpoint")
    token, ca = find_credentials(host)
    try:
        answer = requests.request(
            "POST" if body else "GET",
            host + path,
            json=body,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT,
            verify=ca or True,
            allow_redirects=False,
        )
    except requests.exceptions.SSLError as error:
        raise ModelServerRefuses(
            f"The certificate of {host} is not trusted: {said(error)}.\n"
            f"Trusted: {ca or 'the public CAs'}. Log in (oc login) to trust the CA of your cluster."
        ) from None
    except OSError as error:  # the root of what requests raises
        raise ModelServerRefuses(f"{host} does not answer: {said(error)}.\nCheck the address. {_READY}") from None
    if answer.is_redirect or not answer.ok:
        raise _refused(answer, host + path.partition("/versions/")[0].removesuffix("/infer"))
    return answer


def _refused(answer: requests.Response, model: str) -> ModelServerRefuses:
    status = answer.status_code
    said_so = ""
    if answer.is_redirect:
        # Not its path and query: they may hold what is to be kept secret.
        elsewhere = urlsplit(answer.headers["Location"])
        said_so = f" and redirects to {elsewhere.scheme}://{elsewhere.hostname}"
        to_do = f"If that is the model server's address, use it. If it is a login page: {_LOG_IN}"
    elif status in (401, 403):
        to_do = _LOG_IN
    elif status == 404:
        to_do = f"Expected a ready model of that name and version; {model} lists the ready versions."
    else:
        to_do = _READY if status >= 500 else "Check that the address is that of this project's model server."
    with suppress(ValueError, TypeError, KeyError):
        said_so = f": {answer.json()['error']}"
    return ModelServerRefuses(f"{answer.url} answers {status}{said_so}.\n{to_do}")


def _no_answer(answer: requests.Response, what: str, error: Exception) -> ModelServerRefuses:
    kind = answer.headers.get("Content-Type", "none")
    return ModelServerRefuses(
        f"{answer.url} does not answer with a valid {what} (content type: {kind}; {type(error).__name__}: {error}).\n"
        "Expected JSON of the Open Inference Protocol. Check the address: it may be a login page."
    )


def _read(answer: requests.Response, examples: int, kind: Kind) -> NDArray[np.float32]:
    try:
        [output] = [output for output in answer.json()["outputs"] if output["name"] == kind.output]
        predictions = np.array(output["data"], np.float32).reshape(output["shape"])
    except (ValueError, TypeError, KeyError) as error:
        raise _no_answer(answer, "prediction", error) from None
    shape = predictions.shape
    if len(shape) != 2 or shape[0] != examples or not shape[1]:
        raise ModelServerRefuses(
            f"{answer.url} answers with {kind.output} of shape {list(shape)}, expected [{examples}, labels].\n"
            "Check that the server serves this project's model."
        )
    distribution = kind.activation == "softmax"
    if not np.isfinite(predictions).all() or (
        distribution and not (predictions.min() >= 0 and np.allclose(predictions.sum(axis=1), 1, atol=ADDS_UP))
    ):
        expected = "probabilities: expected none below 0, and a sum of 1" if distribution else "finite numbers"
        raise ModelServerRefuses(
            f"{answer.url} answers with numbers that are not valid {expected}.\n"
            "Check that the server serves this project's model."
        )
    return predictions
