"""Runs that are started again: what a failed one repeats, and what a new one takes from the cache, or finds gone there.

The graph, its names and what may be cached are the product's; what its steps do is not, so that it takes no time.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kubernetes.config import kube_config
from typer.testing import CliRunner

from pipeline.core.errors import RunFailed
from pipeline.settings import read_settings
from scripts import wait
from scripts.cli import app
from scripts.compile_pipeline import pipeline_resources
from scripts.wait import Pace
from tests.kfp.cluster import Cluster, serve_cluster
from tests.kfp.execution import SubprocessExecutor
from tests.kfp.server import StaticGuard, serve
from tests.kfp.service import Service
from tests.kfp.world import DATA_VERSION, IMAGE, NAMESPACE, TOKEN, named

pytest_plugins = ("tests.kfp.fixtures",)

CACHED = {"fetch-data", "preprocess-data", "train-model", "convert-model"}
UNCACHED = {"validate-data", "evaluate-model", "verify-model", "publish-model"}
STEPS = CACHED | UNCACHED
# It fails once if a file says so. It notes that it was run, and writes its outputs if its inputs are there.
BODY = """
    from pathlib import Path
    from pipeline.core.log import step
    with step({name!r}, {inputs}):
        folder = Path({folder!r})
        with (folder / "ran").open("a") as ran:
            ran.write("{name}\\n")
        failing = folder / "failing" / {name!r}
        if failing.exists():
            failing.unlink()
            raise RuntimeError("it fails once")
        for output in ({outputs}):
            Path(output.path).write_text({name!r})
"""


@dataclass
class Site:
    """A pipeline server with the version applied, and what its steps did."""

    folder: Path
    service: Service
    version: str

    def fail(self, *steps: str) -> None:
        """Have each of the steps fail once."""
        for name in steps:
            (self.folder / "failing" / name).touch()

    def run(self, *options: str) -> tuple[str, set[str], str]:
        """Start a run and wait for it; return its id, the steps that were really run, and what was said."""
        ran, results = self.folder / "ran", self.folder / "results"
        ran.unlink(missing_ok=True)
        shutil.rmtree(results, ignore_errors=True)
        words = ("start", self.version, "--data-version", DATA_VERSION, "--result-dir", str(results))
        begun = CliRunner().invoke(app, [*words, *options])
        assert begun.exit_code == 0, begun.output
        ended = CliRunner().invoke(app, ["wait", (results / "run-id").read_text(), "--result-dir", str(results)])
        assert ended.exit_code == 0 or isinstance(ended.exception, RunFailed), ended.output
        assert (ended.exit_code == 0) == ((results / "state").read_text() == "succeeded")
        said = f"{begun.output}{ended.output}{ended.exception or ''}"
        return (results / "run-id").read_text(), set(ran.read_text().split() if ran.exists() else ()), said

    def succeed(self, *options: str) -> tuple[str, set[str], str]:
        run, ran, said = self.run(*options)
        assert self.service.runs[run]["state"] == "SUCCEEDED", said
        return run, ran, said

    def lose(self, run_id: str) -> None:
        """Delete what the steps of a run have handed on, as a bucket does after some days."""
        workflow = next(name for name, each in self.service.workflows.items() if each["run_id"] == run_id)
        for artifact in (self.folder / "work" / workflow / "root" / workflow).glob("*/*"):
            artifact.unlink() if artifact.is_file() else shutil.rmtree(artifact)


def stubbed(folder: Path) -> str:
    """Compile the pipeline, with other steps, into a file; return the version's name."""
    pipeline, version = pipeline_resources(read_settings(), image=IMAGE)
    spec = version["spec"]["pipelineSpec"]
    for label, executor in spec["deploymentSpec"]["executors"].items():
        *command, source = executor["container"]["command"]
        head, _ = source.split(") -> None:", 1)
        inputs = re.findall(r"(\w+): Input\[", head)
        outputs = re.findall(r"(\w+): Output\[(?!Metrics|Classification)", head)
        body = BODY.format(
            name=label.removeprefix("exec-"),
            folder=str(folder),
            inputs=", ".join(inputs),
            outputs="".join(f"{name}, " for name in outputs),
        )
        executor["container"]["command"] = [*command, f"{head}) -> None:{body}"]
    for task in spec["root"]["dag"]["tasks"].values():
        task.pop("retryPolicy", None)  # or it would be tried again at once
    (folder / "pipeline.yaml").write_text(yaml.safe_dump_all([pipeline, version]))
    _, name = named(folder / "pipeline.yaml")
    return name


@pytest.fixture
def site(certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(wait, "Pace", lambda **_: Pace(poll=0.1, settle=0.2))
    (tmp_path / "failing").mkdir()
    executor = SubprocessExecutor(tmp_path / "work")
    with serve_cluster(Cluster(NAMESPACE), certificate) as cluster:
        service = Service(cluster, executor, NAMESPACE)
        with serve(service, StaticGuard({TOKEN}), certificate) as url:
            monkeypatch.setenv("KFP_ENDPOINT", url)
            monkeypatch.setenv("JUKEBOX_NAMESPACE", NAMESPACE)
            config = cluster.kubeconfig(tmp_path / "kubeconfig", TOKEN, certificate)
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(config))
            version = stubbed(tmp_path)
            applied = CliRunner().invoke(app, ["apply", str(tmp_path / "pipeline.yaml")])
            assert applied.exit_code == 0, applied.output
            yield Site(tmp_path, service, version)
        executor.close()


def test_a_failed_run_that_is_started_again_repeats_what_failed_and_what_follows(site: Site) -> None:
    """Given that each step fails once, and the run is started again each time, then nothing else is run twice."""
    site.fail(*STEPS)
    runs, repeated = [], []
    for _ in range(7):
        run, ran, _ = site.run()
        runs.append(run)
        repeated.append(ran)
    assert repeated == [
        {"fetch-data"},
        {"fetch-data", "validate-data", "preprocess-data"},
        {"validate-data", "preprocess-data", "train-model"},
        {"train-model", "evaluate-model", "convert-model"},
        {"evaluate-model", "convert-model", "verify-model"},
        {"verify-model", "publish-model"},
        {"publish-model"},
    ]
    assert len(set(runs)) == len(site.service.workflows) == 1
    assert site.service.runs[runs[0]]["state"] == "SUCCEEDED"


def test_a_new_run_says_what_it_takes_from_the_cache_and_one_without_takes_nothing(site: Site) -> None:
    first, ran, said = site.succeed()
    assert ran == STEPS
    assert "cache" not in said
    second, ran, said = site.succeed()
    assert (second == first, ran) == (False, UNCACHED)
    assert set(re.findall(r"([\w-]+): succeeded, from the cache", said)) == CACHED
    shown = CliRunner().invoke(app, ["status", "--output", "json"]).output
    assert '"cached": [\n    "convert-model",' in shown
    third, ran, said = site.succeed("--no-cache")
    assert (third in (first, second), ran) == (False, STEPS)
    assert "from the cache" not in said


def test_a_run_whose_cached_artifacts_are_gone_is_run_afresh(site: Site) -> None:
    first, _, _ = site.succeed()
    site.lose(first)
    run, ran, said = site.succeed()
    assert ran == STEPS
    assert "ArtifactsGone: nothing found at" in said
    assert f"run {run} was started without the cache" in said
