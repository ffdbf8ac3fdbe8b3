"""The settings of a fork, read from ``manifests/settings/settings.yaml``."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import unquote

import yaml

from pipeline.core.errors import SettingsInvalid
from pipeline.core.sources import SIGNED

SETTINGS_FILE = Path(__file__).parent.parent / "manifests" / "settings" / "settings.yaml"
PIPELINE = "prod-train-save"

# Quantities that both accept: Kubeflow has no fractions of memory, Kubernetes no upper-case K.
_CPU = r"[0-9]+m?|[0-9]*\.[0-9]+", "cores as 2, 0.5 or 500m"
_MEMORY = r"[0-9]+([KMGTPE]i|[MGTPE])?", "bytes as 512Mi or 2Gi"
_COUNT = r"[1-9][0-9]*", "a whole number from 1"
# The address of a server, without credentials.
ADDRESS = r"https?://[^/?#@\s]+(/[^?#@\s]*)?"
_PROXY = r"(https?://[^/?#\s]+/?)?", "an address as http://proxy.example.com:3128, or nothing"
# A user before a host; a password may contain a slash or the like, although an address does not allow it.
_USER = re.compile(r"://([^/?#]*@|[^/@]*:(?!\d+([/?#]|$))[^@]*@)")
_KEYS = re.compile(
    r"(^|&)(((access|auth|private|job|deploy|x-amz-security)[_-])?token|api[_-]?key|password|secret|x-amz-credential)=",
    re.IGNORECASE,
)
_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
_KEY = rf"([a-z0-9][a-z0-9.-]*/)?{_NAME}"
_NODES = rf"({_KEY}=({_NAME})?)?", "a label as label=value, or nothing"
_TAINT = rf"({_KEY})?", "the key of a taint, or nothing"
_TABLE = r"[a-z][a-z0-9_-]*"
_EXPECTED = {
    "platform": (r"kubeflow|openshift-ai", "kubeflow or openshift-ai"),
    "kfp-endpoint": (ADDRESS, "an address as http://host:8888"),
    "git-host": (r"github|gitlab|gitea", "github, gitlab or gitea"),
    "git-api": (rf"({ADDRESS})?", "an address as https://git.example.com/api/v3, or nothing"),
    "prod-branch": (r"[A-Za-z0-9][A-Za-z0-9._/-]*", "the name of a branch"),
    "merge-promotions": (r"never|after-checks", "never or after-checks"),
    "rollback-on-failure": (r"no|yes", "no or yes"),
    "keep-versions": _COUNT,
    "keep-pinned": _COUNT,
    "prod-cluster": (rf"({ADDRESS})?", "the address of a cluster's API as https://kubernetes.default.svc, or nothing"),
    "base-image": (r"\S*", "an image, or nothing"),
    "package-index": (rf"({ADDRESS})?", "an address as https://packages.example.com/simple, or nothing"),
    "run-page": (r".*", "an address, or nothing"),
    "pull-secret": (
        r"(?!jukebox-registry$)([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?",
        "the name of a Secret, or nothing; not jukebox-registry, which may push, and what was pushed could read it",
    ),
    "event-max-size": (r"[1-9][0-9]*[km]?", "bytes as 512k or 5m"),
    "event-rate": (r"[1-9][0-9]*r/[sm]", "events a second or minute as 20r/s or 600r/m"),
    "event-burst": (r"[1-9][0-9]{0,3}", "a whole number from 1 to 9999"),
    "http-proxy": _PROXY,
    "https-proxy": _PROXY,
    "no-proxy": (r"\S*", "hosts with commas between them, without spaces"),
    "nodes": _NODES,
    "taint": _TAINT,
    "train-nodes": _NODES,
    "train-taint": _TAINT,
    "store-nodes": _NODES,
    "store-taint": _TAINT,
    # Argo Workflows makes a label of it, of the pipeline and of five characters, and a label has 63 at most.
    "model-name": (r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", "lower case letters, digits and dashes, at most 40"),
    "model-store": (r"/.*|s3://.+", "a path on the claim as /models, or s3://bucket/prefix"),
    "model-storage-pvc": (r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?", "the name of a claim, or nothing"),
    "step-cpu": _CPU,
    "step-memory": _MEMORY,
    "train-cpu": _CPU,
    "train-memory": _MEMORY,
    "train-gpus": (r"[0-9]+", "a whole number"),
    "quota-cpu": _CPU,
    "quota-memory": _MEMORY,
}
# A step must not be able to write what another one reads; see docs/s3.md.
_S3_SECRETS = ("s3-secret", "data-secret", "store-secret")
# Hosts in the cluster: a step's launcher calls the cluster's API, the pipeline server and the object store.
_WITHOUT_PROXY = ("$(KUBERNETES_SERVICE_HOST)", ".svc", ".cluster.local")


@dataclass(frozen=True)
class Settings:
    """The pipeline's part of the settings file; each field is the key of the same name with dashes."""

    repository: str
    git_host: str
    git_api: str
    branch: str
    prod_branch: str
    merge_promotions: str
    rollback_on_failure: str
    keep_versions: str
    keep_pinned: str
    namespace: str
    ci_namespace: str
    cluster_domain: str
    platform: str
    prod_cluster: str
    kfp_endpoint: str
    image: str
    ci_image: str
    base_image: str
    package_index: str
    pull_secret: str
    http_proxy: str
    https_proxy: str
    no_proxy: str
    run_page: str
    event_max_size: str
    event_rate: str
    event_burst: str
    nodes: str
    taint: str
    train_nodes: str
    train_taint: str
    store_nodes: str
    store_taint: str
    data: Mapping[str, str]
    model_name: str
    model_store: str
    model_storage_pvc: str
    data_secret: str
    s3_secret: str
    store_secret: str
    step_cpu: str
    step_memory: str
    train_cpu: str
    train_memory: str
    train_gpus: str
    gpu_resource: str
    quota_cpu: str
    quota_memory: str

    @property
    def pipeline(self) -> str:
        """Name of the pipeline on the pipeline server, after its model.

        The jukebox's name is older than this rule: a new name would separate it from its versions and runs.
        """
        return PIPELINE if self.model_name == "jukebox" else f"{self.model_name}-{PIPELINE}"

    @property
    def on_claim(self) -> bool:
        """Whether the model store is on the claim, so that steps must mount it."""
        return not self.model_store.startswith("s3://")

    @property
    def proxies(self) -> dict[str, str]:
        """The variables that name the proxies, if there are any: in both cases, as curl and git read lower case."""
        if not self.https_proxy:
            return {}
        named = {"HTTP_PROXY": self.http_proxy, "HTTPS_PROXY": self.https_proxy, "NO_PROXY": self.no_proxy}
        return {spelling: value for name, value in named.items() if value for spelling in (name, name.lower())}


def settings_file() -> Path:
    """The settings file: the one that JUKEBOX_SETTINGS names, else that of this code's checkout."""
    return Path(os.environ.get("JUKEBOX_SETTINGS") or SETTINGS_FILE)


def read_settings(path: Path | None = None) -> Settings:
    """Read and check the settings; raises SettingsInvalid, which names every wrong key and its expected value.

    ``path`` defaults to ``settings_file()``.
    """
    path = path or settings_file()
    try:
        # Read as a stream: for a text, an error would quote the line, which may contain a secret.
        with path.open(encoding="utf-8") as file:
            data = yaml.safe_load(file)["data"]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError) as error:
        raise SettingsInvalid(f"{path} is not a ConfigMap with data: {error}") from None
    if not isinstance(data, dict):
        raise SettingsInvalid(
            f"{path} is not a ConfigMap with data: found {type(data).__name__}, expected keys with values"
        )
    keys = {field.name: field.name.replace("_", "-") for field in fields(Settings)}
    # Other programs read the other keys; none of them may contain a secret.
    wrong = [
        f"{key} {problem}"
        for key in dict.fromkeys([*keys.values(), *data])
        if (problem := _secret(key, data.get(key)) or (_problem(key, data) if key in keys.values() else ""))
    ]
    if not wrong and len({data[key] for key in _S3_SECRETS}) < len(_S3_SECRETS):
        wrong = [f"{', '.join(_S3_SECRETS)} name the same Secret twice, expected three different ones"]
    if wrong:
        raise SettingsInvalid(f"{path}: {'; '.join(wrong)}")
    # As manifests/replacements makes it.
    claim = data["model-storage-pvc"] or f"{data['model-name']}-model-pvc"
    return Settings(
        **{name: data[key] for name, key in keys.items()} | {"data": _uris(data["data"]), "model_storage_pvc": claim}
    )


def model_in(content: bytes) -> str:
    """Return the model's name from the content of a settings file; raises SettingsInvalid if it has none."""
    try:
        data = yaml.safe_load(content)["data"]
        if not _problem("model-name", data):
            return str(data["model-name"])
    except (ValueError, yaml.YAMLError, TypeError, KeyError):
        pass
    raise SettingsInvalid(f"the commit's settings have no valid model-name: expected {_EXPECTED['model-name'][1]}")


def secret_in(value: object) -> str:
    """Return ``holds credentials`` or ``is a signed URL`` if a text does, else an empty text."""
    if not isinstance(value, str):
        return ""
    if _USER.search(value):
        return "holds credentials"
    query = unquote(value.partition("?")[2])
    return "is a signed URL" if SIGNED.search(query) else "holds credentials" if _KEYS.search(query) else ""


def _uris(text: object) -> dict[str, str]:
    """The URI of each table, from the YAML text of the key ``data``; empty if it does not have that form."""
    try:
        found = yaml.safe_load(text) if isinstance(text, str) else None
    except yaml.YAMLError:
        found = None
    if isinstance(found, dict) and all(
        re.fullmatch(_TABLE, str(table)) and isinstance(uri, str) and re.fullmatch(".+", uri)
        for table, uri in found.items()
    ):
        return found
    return {}


def _secret(key: str, value: object) -> str:
    if key in ("http-proxy", "https-proxy") and "@" in str(value):
        return "holds credentials, which do not belong in Git: use a proxy that requires none"
    values: list[object] = [*(_uris(value).values() if key == "data" else ())] or [value]
    if secret := next(filter(None, map(secret_in, values)), ""):
        return (
            f"{secret}, and Git keeps it for ever: remove it, and put the credentials into a Secret; the one that "
            "data-secret names holds the keys for s3://"
        )
    return ""


def _problem(key: str, data: dict[str, object]) -> str:
    if key not in data:
        return "is missing"
    value = data[key]
    if not isinstance(value, str):
        return f"is {value!r}, expected text: put it in quotes, as in a ConfigMap"
    if key == "data":
        # The value is not shown, because it may contain a secret. The listener puts it between single quotes.
        right = _uris(value) and "'" not in value
        expected = "a line for each table, as `table: s3://bucket/table/*.parquet`, without a single quote"
        return "" if right else f"is not {expected}"
    pattern, expected = _EXPECTED.get(key, (".+", "a line of text"))
    if not re.fullmatch(pattern, value):
        return f"is {value!r}, expected {expected}"
    if key == "https-proxy" and not value and data.get("http-proxy"):
        return "is empty and http-proxy is not: set the proxy here as well; nearly all requests use https"
    if key == "prod-branch" and value == data.get("branch"):
        return f"is {value!r}, the branch to train from: name another, so that commits reach production tested"
    lacking = [each for each in _WITHOUT_PROXY if each not in value.split(",")]
    if key == "no-proxy" and data.get("https-proxy") and lacking:
        return f"lacks {' and '.join(lacking)}, which are in the cluster, where no proxy reaches them: add them"
    return ""
