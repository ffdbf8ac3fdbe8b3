"""The model server's REST API: of the Open Inference Protocol, version 2, what ``jukebox predict`` needs."""

from contextlib import suppress
from urllib.parse import urlsplit

import numpy as np
import requests
from numpy.typing import NDArray

from pipeline.core.errors import ModelServerRefuses
from pipeline.models.jukebox.tables import INPUT, OUTPUT
from scripts.clients.pipeline_server import TIMEOUT, address, find_credentials, said

ADDS_UP = 1e-3  # a softmax in bfloat16, too

_READY = "Is a model served (kubectl get inferenceservice)? Then try again."
_LOG_IN = "Log in (oc login) as somebody who may see the InferenceService."


def infer(
    endpoint: str, model_name: str, version: int, features: NDArray[np.float32]
) -> tuple[int, NDArray[np.float32]]:
    """Ask the model server at ``endpoint`` about float32[examples, 13].

    Returns the version that answers, the newest that is served where ``version`` is 0, and float32[examples, labels].
    Raises SettingsInvalid where ``endpoint`` is no address, ModelServerRefuses where there is no such answer.
    """
    host = address(endpoint, "the endpoint")
    model = f"{host}/v2/models/{model_name}"
    tensor = {"name": INPUT, "shape": features.shape, "datatype": "FP32", "data": features.ravel().tolist()}
    token, ca = find_credentials(host)
    try:
        answer = requests.post(
            f"{model}/versions/{version}/infer" if version else f"{model}/infer",
            json={"inputs": [tensor]},
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=TIMEOUT,
            verify=ca or True,
            allow_redirects=False,
        )
    except requests.exceptions.SSLError as error:
        raise ModelServerRefuses(
            f"No trusted connection to {host}: {said(error)}.\n"
            f"Trusted is {ca or 'what public CAs have signed'}; log in (oc login) to trust the CA of your cluster."
        ) from None
    except OSError as error:  # the root of what requests raises
        raise ModelServerRefuses(f"{host} does not answer: {said(error)}.\nCheck the address. {_READY}") from None
    if answer.is_redirect or not answer.ok:
        raise _refused(answer, model)
    return _read(answer, len(features))


def _refused(answer: requests.Response, model: str) -> ModelServerRefuses:
    status = answer.status_code
    said_so = ""
    if answer.is_redirect:
        # Not its path and query: they may hold what is to be kept secret.
        elsewhere = urlsplit(answer.headers["Location"])
        said_so = f" and sends you to {elsewhere.scheme}://{elsewhere.hostname}"
        to_do = f"Name that address if it is the model server's. If it is a login page: {_LOG_IN}"
    elif status in (401, 403):
        to_do = _LOG_IN
    elif status == 404:
        to_do = f"Expected a model of that name and version that is ready; {model} lists the versions that are."
    else:
        to_do = _READY if status >= 500 else "Is it the model server of this project?"
    with suppress(ValueError, TypeError, KeyError):
        said_so = f": {answer.json()['error']}"
    return ModelServerRefuses(f"{answer.url} answers {status}{said_so}.\n{to_do}")


def _read(answer: requests.Response, examples: int) -> tuple[int, NDArray[np.float32]]:
    try:
        body = answer.json()
        version = int(body["model_version"])
        [output] = [output for output in body["outputs"] if output["name"] == OUTPUT]
        probabilities = np.array(output["data"], np.float32).reshape(output["shape"])
    except (ValueError, TypeError, KeyError) as error:
        kind = answer.headers.get("Content-Type", "something without a type")
        raise ModelServerRefuses(
            f"{answer.url} answers with {kind} that is no prediction ({type(error).__name__}: {error}).\n"
            "Expected JSON of the Open Inference Protocol; a login page answers so, too: check the address."
        ) from None
    shape = probabilities.shape
    if len(shape) != 2 or shape[0] != examples:
        raise ModelServerRefuses(
            f"{answer.url} answers with {OUTPUT} of shape {list(shape)}, expected [{examples}, countries].\n"
            "Is it the model of this project?"
        )
    if not (probabilities.min(initial=0) >= 0 and np.allclose(probabilities.sum(axis=1), 1, atol=ADDS_UP)):
        raise ModelServerRefuses(
            f"{answer.url} answers with numbers that are no probabilities: expected none below 0, and a sum of 1.\n"
            "Is it the model of this project?"
        )
    return version, probabilities
