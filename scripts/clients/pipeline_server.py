"""The project's pipeline server: its address, and the credentials for it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLCertVerificationError, SSLError
from typing import Any
from urllib.parse import urlsplit

import requests
import yaml
from kubernetes import client, config
from urllib3.exceptions import ConnectTimeoutError

from pipeline.core.errors import AccessDenied, ServerUnavailable, SettingsInvalid, SingleUser
from pipeline.settings import ADDRESS, Settings

POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The token for Kubeflow's pipeline server alone: its audience, where a pod has it, and the variable that names another
# file. Kubeflow's own SDK looks there, too.
AUDIENCE = "pipelines.kubeflow.org"
AUDIENCE_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
AUDIENCE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"
TIMEOUT = (5, 15)  # seconds to connect and to answer


@dataclass(frozen=True)
class Advice:
    """What to do about a pipeline server, in whole sentences."""

    away: str  # it does not answer
    elsewhere: str  # it does not answer from here
    untrusted: str  # its certificate is not trusted
    unknown: str  # it does not know who we are
    forbidden: str  # it knows, and does not let us in
    other: str  # it is none
    admission: str  # it admits no pipeline


_DSPA_ELSEWHERE = "run this in a pod of the cluster, or set KFP_ENDPOINT to the server's route"
_DSPA_LOG_IN = "Log in (oc login). Your account needs a binding to the Role ds-pipeline-user-access-dspa."
_FORWARD = (
    "run this in a pod of the cluster, or forward the server's port (kubectl port-forward --namespace kubeflow "
    "service/ml-pipeline 8888) and set KFP_ENDPOINT=http://localhost:8888"
)
ADVICE = {
    "openshift-ai": Advice(
        away="Check that the DSPA is ready (oc get dspa).",
        elsewhere=_DSPA_ELSEWHERE,
        untrusted=f"Log in (oc login), or {_DSPA_ELSEWHERE}.",
        unknown=_DSPA_LOG_IN,
        forbidden=_DSPA_LOG_IN,
        other="Check the address. If it is a login page, log in (oc login).",
        admission="Check that the DSPA is ready and its pipelineStore is kubernetes (oc get dspa).",
    ),
    "kubeflow": Advice(
        away="Check that it runs (kubectl get pods --namespace kubeflow), and that this pod's namespace has the label "
        "app.kubernetes.io/part-of: kubeflow-profile.",
        elsewhere=_FORWARD,
        untrusted=f"Give the server a certificate of that CA, or {_FORWARD}.",
        unknown=f"It accepts tokens for the audience {AUDIENCE}. The overlay kubeflow gives the tasks one. Elsewhere: "
        f"kubectl create token jukebox-release --audience {AUDIENCE} > FILE, and {AUDIENCE_VARIABLE}=FILE.",
        forbidden="Bind the account itself to the Role jukebox-pipeline-server of the project's namespace; a "
        "binding to one of its groups has no effect here.",
        other=f"Check the address. If it is the login page of a gateway, {_FORWARD}.",
        admission="Check that Kubeflow Pipelines runs (kubectl get pods --namespace kubeflow) and stores pipelines as "
        "Kubernetes resources.",
    ),
}


@dataclass(frozen=True)
class Server:
    """Address and credentials: ``token`` a bearer token, ``ca`` the file with the CA of the server's certificate.

    ``in_namespace`` tells whether the server is in the project's namespace.
    """

    host: str
    namespace: str
    token: str | None = field(repr=False)
    ca: str | None
    platform: str = "openshift-ai"
    in_namespace: bool = True

    @property
    def advice(self) -> Advice:
        """What to do if the server does not do what it is asked for."""
        return ADVICE[self.platform]

    def send(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: object = None
    ) -> requests.Response:
        """Return the answer to a request for ``/apis/<path>``.

        Raises OSError, as requests does, if there is none; AccessDenied if we are not let in; ServerUnavailable if the
        server speaks https and the address says http.
        """
        answer = requests.request(
            method,
            f"{self.host}/apis/{path}",
            params=query,
            json=body,
            headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
            # A token that is sent in clear is for the cluster's network, not for a proxy.
            proxies={"http": ""} if self.token else {},
            timeout=TIMEOUT,
            verify=self.ca or True,
            allow_redirects=False,
        )
        code, kind = answer.status_code, answer.headers.get("Content-Type", "")
        if code in (401, 403) or answer.is_redirect:
            raise self._denied(answer)
        # Servers in Go say so, and nginx; a pipeline server says nothing but JSON.
        if code == 400 and self.host.startswith("http:") and "json" not in kind and "HTTPS" in answer.text:
            raise _wrong_scheme("https", "http")
        return answer

    def probe(self) -> None:
        """Raise ServerUnavailable, in two lines, unless a pipeline server answers and lets us in.

        kfp's own client would try for 25 seconds, print tracebacks and lose the status; and it takes a login page
        for a server.
        """
        if "<" in self.namespace:
            raise ServerUnavailable(
                f"The namespace {self.namespace} is a placeholder.\n"
                "Set yours in manifests/settings/settings.yaml or in JUKEBOX_NAMESPACE."
            )
        health = self._ask("healthz")
        if not self.in_namespace and health.get("multi_user") is False:
            raise SingleUser(
                f"The server is in single-user mode: it starts runs in its own namespace, not in {self.namespace}.\n"
                "Install Kubeflow Pipelines in multi-user mode, or run the project in the server's namespace."
            )
        # On Kubeflow anybody may ask how it is.
        self._ask("experiments", {"namespace": self.namespace, "page_size": "1"})

    def other(self, found: str) -> AccessDenied:
        """The error if something else answers than a pipeline server."""
        return AccessDenied(f"This is not a pipeline server: {found}.\n{self.advice.other}")

    def _ask(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        try:
            answer = self.send("GET", f"v2beta1/{path}", query)
        except OSError as error:  # which is also the root of what requests raises
            cause = _cause(error)
            if isinstance(cause, SSLCertVerificationError):
                raise ServerUnavailable(
                    f"The server's certificate is not trusted: {said(cause)}.\n"
                    f"Trusted: {self.ca or 'the public CAs'}. {self.advice.untrusted}"
                ) from None
            if isinstance(cause, SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
                raise _wrong_scheme("http", "https") from None
            raise ServerUnavailable(
                f"The server does not answer: {said(cause)}.\n{self.advice.away} If so, {self.advice.elsewhere}."
            ) from None
        code = answer.status_code
        if code >= 500:
            raise ServerUnavailable(f"The server failed: it answers {code}.\n{self.advice.away}")
        kind = answer.headers.get("Content-Type", "none")
        try:
            found = answer.json() if answer.ok and "json" in kind else None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self.other(f"it answers {code} (content type: {kind})")
        return found

    def _denied(self, answer: requests.Response) -> AccessDenied:
        code = answer.status_code
        # Without path and query of the redirect's target, which may contain secrets.
        elsewhere = re.match(r"https?://[^/?#@]+", answer.headers.get("Location", ""))
        # So say Kubeflow's server and the DSPA's proxy.
        known = re.search(r"(?:User '|\(user=)([^',]+)", answer.text) if code == 403 else None
        what = f" to {known[1]}" if known else ""
        what += f" and redirects to {elsewhere[0]}" if elsewhere else ""
        what += "" if self.token else "; no token was sent"
        return AccessDenied(
            f"The server denies access: it answers {code}{what}.\n"
            f"{self.advice.forbidden if code == 403 else self.advice.unknown}"
        )


def find_server(settings: Settings) -> Server:
    """Find the server: KFP_ENDPOINT, else on Kubeflow that of the settings, else the DSPA of the project's namespace.

    The namespace is JUKEBOX_NAMESPACE, else that of the settings. Token and CA come from the pod, else from the
    kubeconfig; on Kubeflow a token for the server alone goes before. Raises SettingsInvalid if KFP_ENDPOINT
    is not a valid address, or the file of the token cannot be read.
    """
    namespace = os.environ.get("JUKEBOX_NAMESPACE") or settings.namespace
    kubeflow = settings.platform == "kubeflow"
    usual = settings.kfp_endpoint if kubeflow else f"https://ds-pipeline-dspa.{namespace}.svc:8443"
    endpoint = os.environ.get("KFP_ENDPOINT", "")
    host = address(endpoint, "KFP_ENDPOINT") if endpoint else usual.rstrip("/")
    token, ca = find_credentials(host)
    if kubeflow:
        token = _audience_token(host) or token
    return Server(host, namespace, token, ca, settings.platform, f".{namespace}.svc" in usual)


def address(text: str, name: str) -> str:
    """Return the address without a slash at its end; raise SettingsInvalid, with its ``name``, if it is not one."""
    host = text.rstrip("/")
    if not re.fullmatch(ADDRESS, host):
        # Not shown: it may hold credentials.
        raise SettingsInvalid(
            f"{name} is not a valid address: expected https://host or https://host:8443, without credentials"
        )
    return host


def find_credentials(host: str) -> tuple[str | None, str | None]:
    """Find the bearer token to show to ``host``, and the file with the CA to trust: a pod's, else the kubeconfig's."""
    token, ca = _pod_credentials() if _in_pod() else _kubeconfig_credentials()
    # A bearer token is for encrypted connections alone (RFC 6750, section 5.3).
    return token if host.startswith("https://") else None, ca


def _audience_token(host: str) -> str | None:
    """Read the token that is bound to Kubeflow's pipeline server; None if there is none, or none for ``host``.

    A bearer token is for encrypted connections alone (RFC 6750, section 5.3), but this server speaks nothing but http
    unless it is told otherwise. So this token, and no other, is sent in clear, within the cluster's network or to a
    port that is forwarded there. It lives for an hour, and its audience makes it worthless to all but this server: who
    reads it there can start runs in the namespace, and ask the cluster's API for nothing.
    """
    if not host.startswith("https://") and not _near(host):
        return None
    named = os.environ.get(AUDIENCE_VARIABLE)
    if not named and not AUDIENCE_TOKEN.is_file():
        return None
    try:
        return Path(named or AUDIENCE_TOKEN).read_text().strip()
    except (OSError, ValueError) as error:
        raise SettingsInvalid(
            f"{AUDIENCE_VARIABLE} is {named}, which cannot be read ({error}); set it to a file that holds a token"
        ) from None


def _near(host: str) -> bool:
    """Tell whether an address is that of a Service, of this machine, or private, as those of pods are."""
    name = urlsplit(host).hostname or ""
    try:
        return ip_address(name).is_private
    except ValueError:
        return name == "localhost" or bool(re.search(r"\.svc(\.cluster\.local)?$", name))


def _in_pod() -> bool:
    return (POD / "namespace").is_file()


def _pod_credentials() -> tuple[str | None, str | None]:
    # OpenShift's service CA signs what Services serve; the other CA is the API server's.
    service_ca = POD / "service-ca.crt"
    return (POD / "token").read_text().strip(), str(service_ca if service_ca.is_file() else POD / "ca.crt")


def _kubeconfig_credentials() -> tuple[str | None, str | None]:
    found = client.Configuration()
    try:
        config.load_kube_config(client_configuration=found)
    except (config.ConfigException, yaml.YAMLError):
        return None, None
    scheme, _, token = (found.get_api_key_with_prefix("authorization") or "").partition(" ")
    return token.strip() if scheme == "Bearer" else None, found.ssl_ca_cert


def _wrong_scheme(spoken: str, asked: str) -> ServerUnavailable:
    return ServerUnavailable(
        f"The server uses {spoken}, and the address says {asked}.\n"
        f"Write {spoken}:// in KFP_ENDPOINT, or in kfp-endpoint of manifests/settings/settings.yaml."
    )


def _cause(error: BaseException) -> BaseException:
    """The innermost of the exceptions that requests and urllib3 wrap into each other."""
    inner = (getattr(error, "reason", None), *reversed(error.args))
    return next((_cause(following) for following in inner if isinstance(following, BaseException)), error)


def said(error: BaseException) -> str:
    """The innermost message of an error of requests and urllib3, without Python objects and URLs."""
    objects = r"^(<[^>]*>|HTTPS?Connection(Pool)?\([^)]*\)|\[SSL: \w+\] certificate verify failed): | \(_ssl\.c:\d+\)$"
    cause = _cause(error)
    # Of this one alone the text is a tuple's: the connection, and what happened to it.
    text = cause.args[-1] if isinstance(cause, ConnectTimeoutError) else cause
    return re.sub(objects, "", str(text)).rstrip(".")
