"""The pipeline server's REST API, as far as this project needs it.

Not through ``kfp.Client``: that has no read timeout, takes a login page for an answer and returns empty objects, loses
the status of a refused connection, and cannot choose a run's id. Here every call has a timeout, reads the token again
(it expires while a training run is waited for), trusts the service CA alone, and tells apart what another try may
mend from what it cannot.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import requests
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from pipeline.core.documents import to_json
from pipeline.core.errors import RequestRefused, ServerAway
from scripts.clients.pipeline_server import Server, said

Json = dict[str, Any]
T = TypeVar("T")

PATIENCE = 60.0  # seconds that a call is tried again for
BACKOFF = wait_exponential_jitter(multiplier=0.5, max=10)  # seconds
PAGE = 100
FAILED = ("FAILED", "CANCELED")  # the states of a run that has not succeeded

# Of the server's own 500s most are the caller's fault (an unknown version, an empty name). These are not: its database
# or the cluster's API is away.
PASSING = re.compile(
    r"connection re(fused|set)|invalid connection|bad connection|broken pipe|i/o timeout|no such host"
    r"|too many connections|deadline exceeded|EOF|failed calling webhook|server is currently unable",
    re.IGNORECASE,
)


class Kfp:
    """The pipeline server that ``find`` finds, again for each call, so that each call uses the current token.

    Calls raise ServerUnavailable: ``ServerAway`` after ``patience`` seconds of tries, ``AccessDenied`` and
    ``RequestRefused`` at once.
    """

    def __init__(self, find: Callable[[], Server], patience: float = PATIENCE) -> None:
        self._find = find
        self._patience = patience

    @property
    def host(self) -> str:
        """The server's address."""
        return self._find().host

    def pipeline(self, name: str) -> Json | None:
        """Return the pipeline of this name (that of its resource), or None."""
        path = f"v2beta1/pipelines/names/{quote(name, safe='')}"
        return self._found(path, "pipeline_id", {"namespace": self._find().namespace})

    def versions(self, pipeline_id: str, name: str = "") -> Iterator[Json]:
        """Yield the versions of a pipeline, the newest first; only the one of this name if it is given."""
        wanted = _equals("name", name) if name else {}
        query = {"sort_by": "created_at desc", **wanted}
        return self._pages(f"v2beta1/pipelines/{pipeline_id}/versions", "pipeline_versions", query)

    def version(self, pipeline_id: str, version_id: str) -> Json | None:
        """Return the version of this id, or None if it was deleted."""
        return self._found(f"v2beta1/pipelines/{pipeline_id}/versions/{version_id}", "pipeline_version_id")

    def run(self, run_id: str) -> Json | None:
        """Return the run of this id, or None."""
        return self._found(f"v2beta1/runs/{quote(run_id, safe='')}", "run_id")

    def runs(self, experiment_id: str, *, state: str = "") -> Iterator[Json]:
        """Yield the runs of an experiment that are not archived, the newest first; only those in ``state``."""
        # Archived runs are listed, too, unless they are filtered out.
        wanted = _equals("storage_state", "AVAILABLE", *(("state", state) if state else ()))
        query = {"experiment_id": experiment_id, "sort_by": "created_at desc", **wanted}
        return self._pages("v2beta1/runs", "runs", query)

    def all_runs(self) -> Iterator[Json]:
        """Yield the runs of all experiments of the project, also archived ones, the newest first."""
        return self._pages("v2beta1/runs", "runs", {"namespace": self._find().namespace, "sort_by": "created_at desc"})

    def recurring_runs(self) -> Iterator[Json]:
        """Yield the recurring runs of the project."""
        return self._pages("v2beta1/recurringruns", "recurringRuns", {"namespace": self._find().namespace})

    def delete_run(self, run_id: str) -> None:
        """Delete a run with its workflow and pods; it may be gone already.

        The files that it has stored stay in the bucket, and its metadata on the server.
        """
        try:
            self._call("DELETE", f"v2beta1/runs/{quote(run_id, safe='')}")
        except RequestRefused as error:
            if error.status != 404:
                raise

    def experiment(self, name: str) -> str | None:
        """Return the id of the experiment of this name, or None."""
        query = {**_equals("display_name", name), "namespace": self._find().namespace}
        found = next(self._pages("v2beta1/experiments", "experiments", query), None)
        return str(found["experiment_id"]) if found else None

    def create_experiment(self, name: str) -> str:
        """Return the id of the experiment of this name, created if there is none."""
        if found := self.experiment(name):
            return found
        body = {"display_name": name, "namespace": self._find().namespace}
        try:
            return str(self._call("POST", "v2beta1/experiments", "experiment_id", body=body)["experiment_id"])
        except RequestRefused as error:
            # Somebody else was faster.
            if error.status == 409 and (found := self.experiment(name)):
                return found
            raise

    def create_run(self, run: Mapping[str, Any]) -> Json:
        """Create a run, in one attempt: a second POST of the same run starts a second workflow."""
        return self._call("POST", "v2beta1/runs", "run_id", body=dict(run), once=True)

    def retry_run(self, run_id: str) -> None:
        """Have a failed run go on: what has failed in it and what follows is run again, all else is kept.

        Raises RequestRefused or AccessDenied if the server does not.
        """
        try:
            self._call("POST", f"v2beta1/runs/{quote(run_id, safe='')}:retry")
        except RequestRefused:
            # An earlier attempt may have done it, and its answer was lost.
            if (self.run(run_id) or {}).get("state") in FAILED:
                raise

    def log(self, run_id: str, node: str) -> str:
        """Return the log of a node of a run's workflow; of a node with attempts that of the last one.

        Raises RequestRefused where there is none.
        """
        path = f"v1alpha1/runs/{quote(run_id, safe='')}/nodes/{quote(node, safe='')}/log"
        text = self._tried(lambda: self._send("GET", path).text, self._patience)
        # An error has status 200, too.
        if text.startswith('{"error_message"'):
            raise RequestRefused(200, str(json.loads(text)["error_message"]).rsplit(": ", 1)[-1])
        return text

    def _found(self, path: str, key: str, query: Mapping[str, str] | None = None) -> Json | None:
        try:
            return self._call("GET", path, key, query=query)
        except RequestRefused as error:
            if error.status == 404:
                return None
            raise

    def _pages(self, path: str, key: str, query: Mapping[str, str]) -> Iterator[Json]:
        token = ""
        while True:
            page = self._call("GET", path, query={"page_size": str(PAGE), **query, "page_token": token})
            yield from page.get(key, ())
            token = page.get("next_page_token", "")
            if not token:
                return

    def _call(
        self,
        method: str,
        path: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        once: bool = False,
    ) -> Json:
        """Return the JSON object that is answered; ``key`` is a field without which it is no answer."""
        patience = 0 if once else self._patience
        return self._tried(lambda: self._object(self._send(method, path, query, body), key), patience)

    def _tried(self, action: Callable[[], T], patience: float) -> T:
        retrying = Retrying(
            stop=stop_after_delay(patience), wait=BACKOFF, retry=retry_if_exception_type(ServerAway), reraise=True
        )
        return retrying(action)

    def _send(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Json | None = None
    ) -> requests.Response:
        server = self._find()
        if "<" in server.namespace:
            server.probe()  # which says that it is a placeholder
        try:
            answer = server.send(method, path, query, body)
        except requests.exceptions.SSLError:
            server.probe()  # which says what is wrong with the certificate
            raise ServerAway("The server closed the connection before the answer was complete.") from None
        except OSError as error:  # the root of what requests raises
            raise ServerAway(f"The server {server.host} does not answer: {said(error)}.") from None
        _check(answer)
        return answer

    def _object(self, answer: requests.Response, key: str) -> Json:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or (key and not found.get(key)):
            kind = answer.headers.get("Content-Type", "none")
            raise self._find().other(f"its answer has no {key or 'list'} (content type: {kind})")
        return found


def spec_alone(answered: Json) -> Json:
    """Return the pipeline's spec from what the server answers as such: with a platform's part, that holds both."""
    found: Json = answered.get("pipeline_spec", answered)
    return found


def from_cache(run: Json) -> list[str]:
    """Return the steps of a run that were taken from the cache, in the order of their names.

    The server lists the nodes of Argo's workflow. Such a step's own node has succeeded and was never seen to run; the
    node of its pod, which all steps call ``executor``, is there as SKIPPED, with the same begin.
    """
    tasks = run.get("run_details", {}).get("task_details", ())
    skipped = {task["start_time"] for task in tasks if task.get("state") == "SKIPPED"}
    return sorted(
        task["display_name"]
        for task in tasks
        if task.get("state") == "SUCCEEDED"
        and task["start_time"] in skipped
        and all(entry["state"] != "RUNNING" for entry in task.get("state_history", ()))
    )


def _check(answer: requests.Response) -> None:
    if answer.ok:
        return
    status = answer.status_code
    message, reason = _said(answer)
    # A 5xx that is not the server's own comes from a proxy in front of it.
    if status in (429, 502, 503, 504) or (status >= 500 and (not message or PASSING.search(message))):
        raise ServerAway(f"The server failed: it answers {status}{': ' * bool(reason)}{reason}.")
    raise RequestRefused(status, reason or "without a reason")


def _said(answer: requests.Response) -> tuple[str, str]:
    """The whole message of the server's error, and the part of it that is for people; empty if it is not its own."""
    try:
        body = answer.json()
        message = str(body["message"])
        details = [str(detail.get("message", "")) for detail in body.get("details", ())]
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", ""
    # The detail is the innermost error; of an error of its own the server does not show it.
    reason = next((detail for detail in details if detail != "Internal Server Error"), message.rsplit(": ", 1)[-1])
    return message, reason.strip().rstrip(".")


def _equals(*pairs: str) -> dict[str, str]:
    """The ``filter`` parameter for keys and their values, in turn."""
    predicates = [
        {"key": key, "operation": "EQUALS", "string_value": value}
        for key, value in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    return {"filter": to_json({"predicates": predicates})}
