"""All that a command meets on a laptop: stand-ins for the pipeline server and the cluster."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kfp import compiler, dsl
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from pipeline.kfp_server import Kfp
from pipeline.prod_train_save_pipeline import PIPELINE
from pipeline.server import find_server
from pipeline.settings import read_settings
from tests.kfp.cluster import Cluster
from tests.kfp.execution import Look, ScriptedExecutor, printed
from tests.kfp.service import Service

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


component = dsl.component(base_image="jukebox-training", install_kfp_package=False)
make_step, train_step = component(make), component(train)


def tiny(data_version: str, rows: int = 3, commit: str = "", songs: str = "", rankings: str = "") -> None:
    """Two steps under the name of the product's pipeline."""
    train_step(twice=make_step(rows=rows).output)


def compiled(file: Path, version: str = f"{PIPELINE}-000000000001", pipeline: Any = tiny) -> Path:
    """Compile a pipeline as `jukebox compile` does; return the file."""
    options = KubernetesManifestOptions(
        pipeline_name=PIPELINE, pipeline_version_name=version, include_pipeline_manifest=True
    )
    compiler.Compiler().compile(
        dsl.pipeline(name=PIPELINE)(pipeline),
        str(file),
        kubernetes_manifest_format=True,
        kubernetes_manifest_options=options,
    )
    return file


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
