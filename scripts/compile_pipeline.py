"""``jukebox compile``: the pipeline as the Kubernetes resources that the pipeline server takes."""

import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions

from pipeline.prod_train_save_pipeline import PIPELINE, build_pipeline
from pipeline.settings import SETTINGS_FILE, Settings, read_settings

# Annotations of our own stand under this prefix.
PREFIX = "jukebox.github.io"
Resource = dict[str, Any]


def command(
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("build/pipeline.yaml"),
    image: Annotated[str, typer.Option(help="Training image, by digest; else that of the settings.")] = "",
    commit: Annotated[str, typer.Option(help="Commit of the source; else the checkout's HEAD.")] = "",
    built_by: Annotated[str, typer.Option(help="Who compiles: a PipelineRun, a person.")] = "",
    settings_file: Annotated[Path, typer.Option("--settings", help="The settings.")] = SETTINGS_FILE,
) -> None:
    """Write Pipeline and PipelineVersion; the version is named by the hash of what it does.

    Example: `jukebox compile --image registry/jukebox-training@sha256:…`
    """
    settings = read_settings(settings_file)
    resources = pipeline_resources(settings, image=image, commit=commit or head(), built_by=built_by)
    text = yaml.safe_dump_all(resources, allow_unicode=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text(text)
    partial.replace(output)
    print(f"{output}: PipelineVersion {resources[1]['metadata']['name']}")


def pipeline_resources(
    settings: Settings, *, image: str = "", commit: str = "", built_by: str = ""
) -> tuple[Resource, Resource]:
    """Return Pipeline and PipelineVersion.

    The version's name ends in the first 12 hex digits of the sha256 of its compiled spec (canonical JSON of
    pipelineSpec and platformSpec), so what changes nothing of the pipeline makes no new version.
    """
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(
            build_pipeline(settings, image=image),
            str(package),
            kubernetes_manifest_format=True,
            kubernetes_manifest_options=KubernetesManifestOptions(
                pipeline_name=PIPELINE, include_pipeline_manifest=True
            ),
        )
        pipeline, version = yaml.safe_load_all(package.read_text())
    spec = version["spec"]
    compiled = {key: spec[key] for key in ("pipelineSpec", "platformSpec")}
    digest = hashlib.sha256(json.dumps(compiled, sort_keys=True).encode()).hexdigest()
    labels = {"app.kubernetes.io/name": PIPELINE, "app.kubernetes.io/part-of": "jukebox"}
    for resource in (pipeline, version):
        resource["metadata"]["labels"] = {**labels, "app.kubernetes.io/component": "pipeline"}
    version["metadata"]["name"] = spec["displayName"] = f"{PIPELINE}-{digest[:12]}"
    provenance = {"commit": commit, "image": image or settings.image, "built-by": built_by}
    version["metadata"]["annotations"] = {f"{PREFIX}/{key}": value for key, value in provenance.items() if value}
    if commit:
        spec["codeSourceURL"] = f"{settings.repository}/commit/{commit}"
    return pipeline, version


def head() -> str:
    """The checkout's commit, or nothing where this is no checkout."""
    root = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""
