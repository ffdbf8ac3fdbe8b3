"""``jukebox apply``: Pipeline and PipelineVersion into the cluster, through the admission of the pipeline server."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from google.protobuf import json_format  # type: ignore[import-untyped]
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from pipeline.core.documents import to_json
from pipeline.core.errors import ClusterAway, ClusterRefuses, ServerUnavailable, SettingsInvalid
from pipeline.settings import read_settings
from scripts.clients.kubernetes_api import Cluster, Kind, Resource
from scripts.clients.pipeline_server import find_server
from scripts.results import ResultDir, write_results
from scripts.spec_policy import API_VERSION, judge

GROUP, VERSION = API_VERSION.split("/")
PIPELINES = Kind(GROUP, VERSION, "pipelines")
VERSIONS = Kind(GROUP, VERSION, "pipelineversions")
# The pipeline server's webhook puts it on what it admits.
ADMITTED = "pipelines.kubeflow.org/pipeline-id"
BACKOFF = wait_exponential_jitter(multiplier=0.5, max=10)  # seconds


LARGEST = 1 << 20  # bytes of a file: etcd takes objects of 1.5 MiB, and YAML is longer than the JSON in there


def command(
    file: Annotated[Path, typer.Argument(help="File that `jukebox compile` wrote.")] = Path("build/pipeline.yaml"),
    image: Annotated[str, typer.Option(help="Image that every step must run, by digest.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the pipeline server's admission webhook.")] = 120,
    result_dir: ResultDir = None,
) -> None:
    """Apply the Pipeline, and create the PipelineVersion unless it exists.

    Pushed code wrote the file, so it is compared with the settings first. Nothing is applied if it asks for more than
    they allow: another Secret, claim or image, more than the quota, or an unknown field.

    Example: `jukebox apply build/pipeline.yaml`
    """
    pipeline, version = read_resources(file)
    settings = read_settings()
    judge(pipeline, version, settings, image)
    server = find_server(settings)
    name = version["metadata"]["name"]
    try:
        created = apply(Cluster(server.namespace), pipeline, version, timeout)
    except NotYet as error:
        raise ServerUnavailable(f"{error}\n{server.advice.admission}") from None
    print(f"PipelineVersion {name}: {'created' if created else 'exists already, unchanged'}")
    write_results(result_dir, version=name, created=to_json(created))


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines make gigabytes; the compiler writes none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "it has a YAML alias", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def read_resources(file: Path) -> tuple[Resource, Resource]:
    """Return the Pipeline and the PipelineVersion in a YAML or JSON file, which anybody may have written.

    Raises SettingsInvalid, which quotes no line of it, if it is not a file of at most 1 MiB with one of each, or if a
    key in it is not text: some YAML readers read n, y, no or on as booleans, and the server would accept a parameter
    called "false".
    """
    try:
        documents = _documents(file)
        strange = next(_strange_keys(documents), "")
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise SettingsInvalid(f"{file} cannot be read: {error}; write it with `jukebox compile`") from None
    if not all(isinstance(document, dict) for document in documents):
        documents = []
    if strange:
        raise SettingsInvalid(
            f"{file} has the key {strange}, expected text: a tool read an unquoted name as a boolean or a number; "
            "apply the file as `jukebox compile` wrote it"
        )
    kinds = {str(document.get("kind")): document for document in documents}
    if len(documents) != 2 or set(kinds) != {"Pipeline", "PipelineVersion"}:
        raise SettingsInvalid(
            f"{file} holds {[*kinds]!r:.100}, expected one Pipeline and one PipelineVersion. "
            "Write the file with `jukebox compile`"
        )
    return kinds["Pipeline"], kinds["PipelineVersion"]


def _documents(file: Path) -> list[Any]:
    if file.exists() and not file.is_file():
        raise ValueError("it is not a file")
    with file.open("rb") as stream:
        content = stream.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes")
    # As a stream: of a text, an error would quote the line.
    return [*yaml.load_all(BytesIO(content), Loader=_Loader)]


def apply(cluster: Cluster, pipeline: Resource, version: Resource, timeout: float) -> bool:
    """Apply the pipeline, then the version; tell whether the version was created.

    Both are sent as JSON. A version's spec is immutable: one with the same compiled spec is left alone. The version is
    created only when the admission has seen it in a dry run, because one that slipped past it would belong to no
    pipeline. Raises ServerUnavailable with the refusal; NotYet if the admission is not up for ``timeout`` seconds.
    """
    retrying = Retrying(
        stop=stop_after_delay(timeout),
        wait=BACKOFF,
        retry=retry_if_exception_type((NotYet, ClusterAway)),
        reraise=True,
    )
    retrying(_apply_pipeline, cluster, pipeline)
    return bool(retrying(_create_version, cluster, version))


class NotYet(ServerUnavailable):
    """The admission is not up."""


def _apply_pipeline(cluster: Cluster, pipeline: Resource) -> None:
    name = pipeline["metadata"]["name"]
    wanted = {"metadata": {"labels": pipeline["metadata"].get("labels", {})}, "spec": pipeline.get("spec", {})}
    try:
        found = cluster.read(PIPELINES, name)
        if found is None:
            cluster.create(PIPELINES, pipeline)
        elif not _holds(found, wanted):
            cluster.patch(PIPELINES, name, wanted)
    except ClusterRefuses as error:
        if error.status != 409:  # Somebody else was faster.
            raise _explained(error, f"Pipeline {name}") from None


def _create_version(cluster: Cluster, version: Resource) -> bool:
    name = version["metadata"]["name"]
    try:
        if found := cluster.read(VERSIONS, name):
            _require_same(found, version)
            return False
        admitted = cluster.create(VERSIONS, version, dry_run=True)
        if ADMITTED not in admitted["metadata"].get("labels", {}):
            raise NotYet("The pipeline server's admission webhook is missing: nothing was created.")
        cluster.create(VERSIONS, version)
    except ClusterRefuses as error:
        if error.status == 409 and (found := cluster.read(VERSIONS, name)):
            _require_same(found, version)
            return False
        raise _explained(error, f"PipelineVersion {name}", version["spec"].get("pipelineSpec")) from None
    return True


def _require_same(found: Resource, version: Resource) -> None:
    for key in ("pipelineSpec", "platformSpec"):
        if found["spec"].get(key) != version["spec"].get(key):
            raise ServerUnavailable(
                f"PipelineVersion {version['metadata']['name']} exists with another {key}, and a version cannot be "
                "changed.\nCompile again: `jukebox compile` names a version after its content."
            )


def _holds(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return all(isinstance(found, Mapping) and _holds(found.get(key), value) for key, value in wanted.items())
    return bool(found == wanted)


def _explained(error: ClusterRefuses, what: str, spec: object = None) -> ServerUnavailable:
    """The error for a refusal: NotYet if a retry may succeed, else one with a remedy."""
    reason = error.reason.strip()
    if "failed calling webhook" in reason or error.status in (429, 502, 503, 504):
        return NotYet(f"The pipeline server's admission webhook does not answer: {reason}.")
    if "map to an existing Pipeline" in reason:
        # The webhook reads from a cache, and the Pipeline was applied a moment ago.
        return NotYet(f"{what} is refused: {reason}")
    if error.status in (401, 403):
        return ServerUnavailable(
            f"{what} cannot be applied: {reason}\n"
            "The account needs get, create and patch on pipelines and pipelineversions of pipelines.kubeflow.org."
        )
    if error.status == 404:
        return ServerUnavailable(
            f"{what} cannot be applied: {reason}\nCheck that Kubeflow's CRDs are installed and the namespace exists."
        )
    wrong = _wrong_in(spec) if "pipeline spec is invalid" in reason else ""
    return ServerUnavailable(f"{what} is refused: {reason}{wrong and f' ({wrong})'}\nCorrect it, and compile again.")


def _wrong_in(spec: object) -> str:
    """The problems of a spec; the server only reports that it is invalid."""
    try:
        json_format.ParseDict(spec, PipelineSpec())
    except (json_format.ParseError, AttributeError, TypeError) as error:
        return str(error)
    return "" if isinstance(spec, dict) and "root" in spec else "it has no root"


def _strange_keys(value: object, path: str = "") -> Iterator[str]:
    """The keys that are not text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                yield f"{key!r} in {path or 'it'}"
            yield from _strange_keys(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _strange_keys(inner, path)
