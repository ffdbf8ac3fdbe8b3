"""All that a command meets on a laptop: stand-ins for the pipeline server and the cluster."""

from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, dsl, kubernetes
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kfp.dsl.pipeline_context import Pipeline

import pipeline.models.jukebox  # noqa: F401 the tests' settings name it; without it, what imports this is skipped
from pipeline.settings import PIPELINE, read_settings
from scripts.clients.kfp_server import Kfp
from scripts.clients.pipeline_server import find_server
from scripts.spec_policy import version_name
from tests.kfp.cluster import Cluster
from tests.kfp.execution import Look, ScriptedExecutor, printed
from tests.kfp.service import Service
from tests.settings_file import SETTINGS_FILE

NAMESPACE = "ada-jukebox"
CI_NAMESPACE = f"{NAMESPACE}-ci"
TOKEN = "a-token-that-nobody-may-read"
AUDIENCE_TOKEN = "a-token-for-the-pipeline-server-that-nobody-may-read"
DATA_VERSION = "d" * 64


def make(rows: int) -> int:
    print("made", rows)
    return rows * 2


def train(twice: int) -> str:
    if twice > 100:
        raise ValueError(f"too many: {twice}")
    return f"trained on {twice}"


SETTINGS = read_settings(SETTINGS_FILE)
IMAGE = f"{SETTINGS.image}@sha256:{'0' * 64}"
component = dsl.component(base_image=IMAGE, install_kfp_package=False)
make_step, train_step = component(make), component(train)


def tiny(
    data_version: str,
    rows: int = 3,
    commit: str = "",
    data: dict[str, str] = dict(SETTINGS.data),  # noqa: B006
) -> None:
    """Two steps under the name of the product's pipeline."""
    train_step(twice=make_step(rows=rows).output)


def compiled(file: Path, version: str = f"{PIPELINE}-000000000001", pipeline: Any = tiny) -> Path:
    """Compile a pipeline as `jukebox compile` does, to what the cluster takes but for its name; return the file."""

    @wraps(pipeline)
    def bounded(*arguments: Any) -> None:
        pipeline(*arguments)
        for task in Pipeline.get_default_pipeline().tasks.values():
            task.set_cpu_limit("1").set_memory_limit("1Gi")
            kubernetes.set_timeout(task, 60)
            kubernetes.set_security_context(task, run_as_non_root=True)

    options = KubernetesManifestOptions(
        pipeline_name=PIPELINE, pipeline_version_name=version, include_pipeline_manifest=True
    )
    compiler.Compiler().compile(
        dsl.pipeline(name=PIPELINE)(bounded),
        str(file),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    return file


def named(file: Path) -> tuple[Path, str]:
    """Name the version in a file by its spec, as `jukebox compile` does; return the file and the name."""
    pipeline, version = yaml.safe_load_all(file.read_text())
    name = version_name(PIPELINE, version["spec"]["pipelineSpec"], version["spec"]["platformSpec"])
    version["metadata"]["name"] = version["spec"]["displayName"] = name
    file.write_text(yaml.safe_dump_all([pipeline, version]))
    return file, name


@dataclass
class World:
    """The stand-ins, and the client as a command makes it."""

    cluster: Cluster
    service: Service
    executor: ScriptedExecutor
    url: str
    ca: Path
    tokens: set[str]

    def kfp(self, patience: float = 10) -> Kfp:
        return Kfp(partial(find_server, read_settings()), patience)

    def posts(self, end: str = "/runs") -> list[Any]:
        """The bodies of what was posted to such a path."""
        return [body for method, path, body in self.service.asked if method == "POST" and path.endswith(end)]

    def workflow_of(self, run_id: str) -> str:
        """The name of the run's workflow."""
        return next(name for name, each in self.service.workflows.items() if each["run_id"] == run_id)

    def set(self, run_id: str, *tasks: tuple[str, str, str], code: int | None = None, started: bool = True) -> None:
        """Have the run's workflow come to this point: (step, state, what it printed)."""
        self.executor.looks[self.workflow_of(run_id)] = Look(started, printed(*tasks), code)
