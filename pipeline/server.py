"""The project's pipeline server: where it is, and who we are to it."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLCertVerificationError

import requests
import yaml
from kubernetes import client, config
from urllib3.exceptions import ConnectTimeoutError

from pipeline.errors import ServerUnavailable, SettingsInvalid
from pipeline.settings import Settings

POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT = (5, 15)  # seconds to connect and to answer

_ELSEWHERE = "run this in a pod of the cluster, or name the server's route in KFP_ENDPOINT"
_LOG_IN = "Check the address; a route that shows a login page answers so, too: log in (oc login)."
_READY = "Is the DSPA ready (oc get dspa)?"


@dataclass(frozen=True)
class Server:
    """Address and credentials: ``token`` a bearer token, ``ca`` the file with the CA of the server's certificate."""

    host: str
    namespace: str
    token: str | None = field(repr=False)
    ca: str | None

    def probe(self) -> None:
        """Raise ServerUnavailable, in two lines, unless a pipeline server answers and lets us in.

        kfp's own client would try for 25 seconds, print tracebacks and lose the status; and it takes a login page
        for a server.
        """
        if "<" in self.host:
            raise ServerUnavailable(
                f"The namespace {self.namespace} is a placeholder.\n"
                "Name yours in manifests/settings/settings.yaml or in JUKEBOX_NAMESPACE."
            )
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = f"{self.host}/apis/v2beta1/healthz"
        try:
            answer = requests.get(url, headers=headers, timeout=TIMEOUT, verify=self.ca or True, allow_redirects=False)
        except OSError as error:  # which is also the root of what requests raises
            cause = _cause(error)
            if isinstance(cause, SSLCertVerificationError):
                raise ServerUnavailable(
                    f"Its certificate is not trusted: {said(cause)}.\n"
                    f"Trusted is {self.ca or 'what public CAs have signed'}. Log in (oc login), or {_ELSEWHERE}."
                ) from None
            raise ServerUnavailable(f"No server answers there: {said(cause)}.\n{_READY} If so, {_ELSEWHERE}.") from None
        code = answer.status_code
        if code in (401, 403) or answer.is_redirect:
            raise _refused(code, answer.headers.get("Location", ""))
        if code >= 500:
            raise ServerUnavailable(f"The server is out of order: it answers {code}.\n{_READY} Then try again.")
        kind = answer.headers.get("Content-Type", "something without a type")
        if not answer.ok or "json" not in kind:
            raise ServerUnavailable(
                f"What answers there is no pipeline server: it answers {code} with {kind}.\n{_LOG_IN}"
            )


def find_server(settings: Settings) -> Server:
    """Find the server: KFP_ENDPOINT, else the DSPA of the project's namespace.

    The namespace is JUKEBOX_NAMESPACE, else the pod's where this runs in one, else that of the settings. Token and
    CA come from the pod, else from the kubeconfig. Raises SettingsInvalid where KFP_ENDPOINT is no address.
    """
    namespace = os.environ.get("JUKEBOX_NAMESPACE") or (
        (POD / "namespace").read_text().strip() if _in_pod() else settings.namespace
    )
    endpoint = os.environ.get("KFP_ENDPOINT", "")
    host = address(endpoint, "KFP_ENDPOINT") if endpoint else f"https://ds-pipeline-dspa.{namespace}.svc:8443"
    return Server(host, namespace, *find_credentials(host))


def address(text: str, name: str) -> str:
    """Return the address without a slash at its end; raise SettingsInvalid, with its ``name``, where it is none."""
    host = text.rstrip("/")
    if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", host):
        # Not shown: it may hold credentials.
        raise SettingsInvalid(f"{name} is no address as https://host or https://host:8443, without credentials")
    return host


def find_credentials(host: str) -> tuple[str | None, str | None]:
    """Find the bearer token to show to ``host``, and the file with the CA to trust: a pod's, else the kubeconfig's."""
    token, ca = _pod_credentials() if _in_pod() else _kubeconfig_credentials()
    # A bearer token is for encrypted connections alone (RFC 6750, section 5.3).
    return token if host.startswith("https://") else None, ca


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


def _refused(code: int, location: str = "") -> ServerUnavailable:
    # Not its path and query: they may hold what is to be kept secret.
    elsewhere = re.match(r"https?://[^/?#@]+", location)
    to = f" and sends you to {elsewhere[0]}" if elsewhere else ""
    return ServerUnavailable(
        f"The server does not let you in: it answers {code}{to}.\n"
        "Log in (oc login), and have your account bound to the Role ds-pipeline-user-access-dspa."
    )


def _cause(error: BaseException) -> BaseException:
    """The innermost of the exceptions that requests and urllib3 wrap into each other."""
    inner = (getattr(error, "reason", None), *reversed(error.args))
    return next((_cause(following) for following in inner if isinstance(following, BaseException)), error)


def said(error: BaseException) -> str:
    """What is said at the bottom of what requests and urllib3 wrap, without the Python objects; no URL is in it."""
    objects = r"^(<[^>]*>|HTTPS?Connection(Pool)?\([^)]*\)|\[SSL: \w+\] certificate verify failed): | \(_ssl\.c:\d+\)$"
    cause = _cause(error)
    # Of this one alone the text is a tuple's: the connection, and what happened to it.
    text = cause.args[-1] if isinstance(cause, ConnectTimeoutError) else cause
    return re.sub(objects, "", str(text)).rstrip(".")
