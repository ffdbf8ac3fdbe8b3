"""The project's pipeline server: where it is, and who we are to it."""

import os
from dataclasses import dataclass
from pathlib import Path

import requests
from kubernetes import client, config

from pipeline.errors import ServerUnavailable
from pipeline.settings import Settings

POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT = (5, 15)  # seconds to connect and to answer


@dataclass(frozen=True)
class Server:
    """Address and credentials: ``token`` a bearer token, ``ca`` the file with the CA of the server's certificate."""

    host: str
    namespace: str
    token: str | None
    ca: str | None

    def probe(self) -> None:
        """Raise ServerUnavailable, with what to do, unless a pipeline server answers and lets us in.

        kfp's own client would try for 25 seconds, print tracebacks and lose the status.
        """
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = f"{self.host}/apis/v2beta1/healthz"
        try:
            answer = requests.get(url, headers=headers, timeout=TIMEOUT, verify=self.ca or True, allow_redirects=False)
        except requests.exceptions.SSLError as error:
            raise ServerUnavailable(
                f"Its certificate is not trusted: {_reason(error)}\n"
                f"CA in use: {self.ca or 'the public ones'}. Log in to the cluster, or run this in one of its pods."
            ) from None
        except requests.exceptions.RequestException as error:
            raise ServerUnavailable(
                f"No server answers there: {_reason(error)}\n"
                "Run this in a pod of the cluster, or forward a port and name it in KFP_ENDPOINT; "
                "is the DSPA ready (oc get dspa)?"
            ) from None
        if answer.status_code in (401, 403) or answer.is_redirect:
            raise ServerUnavailable(
                f"The server does not let you in: it answered {answer.status_code}.\n"
                "Log in (oc login), and have your account bound to the Role ds-pipeline-user-access-dspa."
            )
        if not answer.ok or "json" not in answer.headers.get("Content-Type", ""):
            raise ServerUnavailable(
                f"What answers there is no pipeline server: {answer.status_code} {answer.headers.get('Content-Type')}\n"
                "Check the address; a route that shows a login page answers so, too."
            )


def find_server(settings: Settings) -> Server:
    """Find the server: KFP_ENDPOINT, else the DSPA of the project's namespace.

    The namespace is JUKEBOX_NAMESPACE, else the pod's where this runs in one, else that of the settings. Token and
    CA come from the pod, else from the kubeconfig.
    """
    pod_namespace = POD / "namespace"
    namespace = os.environ.get("JUKEBOX_NAMESPACE") or (
        pod_namespace.read_text().strip() if pod_namespace.is_file() else settings.namespace
    )
    host = os.environ.get("KFP_ENDPOINT") or f"https://ds-pipeline-dspa.{namespace}.svc:8443"
    if pod_namespace.is_file():
        # OpenShift's service CA signs what Services serve; the other CA is the API server's.
        service_ca = POD / "service-ca.crt"
        ca = service_ca if service_ca.is_file() else POD / "ca.crt"
        return Server(host.rstrip("/"), namespace, (POD / "token").read_text().strip(), str(ca))
    found = client.Configuration()
    try:
        config.load_kube_config(client_configuration=found)
    except config.ConfigException:
        return Server(host.rstrip("/"), namespace, None, None)
    token = found.get_api_key_with_prefix("authorization")
    return Server(host.rstrip("/"), namespace, token.removeprefix("Bearer ") if token else None, found.ssl_ca_cert)


def _reason(error: Exception) -> str:
    """The innermost reason of what requests and urllib3 wrap many times."""
    inner: BaseException = error
    while isinstance(
        following := getattr(inner, "reason", None) or (inner.args[0] if inner.args else None), BaseException
    ):
        inner = following
    return str(inner).split(": ", 1)[-1]
