"""``jukebox compile``: the pipeline as the Kubernetes resources that the pipeline server takes."""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from pipeline.checkout import DIRTY, head, page
from pipeline.core.errors import SettingsInvalid
from pipeline.prod_train_save_pipeline import build_pipeline, spec_of
from pipeline.settings import Settings, read_settings
from scripts.clients.kubernetes_api import PREFIX
from scripts.spec_policy import API_VERSION, labels, version_name

Resource = dict[str, Any]


def command(
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("build/pipeline.yaml"),
    image: Annotated[str, typer.Option(help="Training image, by digest; default: that of the settings.")] = "",
    commit: Annotated[str, typer.Option(help="Commit of the source; default: the checkout's HEAD.")] = "",
    built_by: Annotated[str, typer.Option(help="Who compiles: the name of a PipelineRun or a person.")] = "",
    settings: Annotated[
        Path | None, typer.Option(help="Settings file; default: JUKEBOX_SETTINGS, else the checkout's.")
    ] = None,
) -> None:
    """Write the Pipeline and the PipelineVersion, which is named by a hash of its spec.

    Example: `jukebox compile --image registry/jukebox-training@sha256:…`
    """
    resources = pipeline_resources(read_settings(settings), image=image, commit=commit or head(), built_by=built_by)
    _write(output, yaml.safe_dump_all(resources, allow_unicode=True))
    print(f"{output}: PipelineVersion {resources[1]['metadata']['name']}")


def pipeline_resources(
    settings: Settings, *, image: str = "", commit: str = "", built_by: str = ""
) -> tuple[Resource, Resource]:
    """Return Pipeline and PipelineVersion.

    The version's name is made of its spec, so what changes nothing of the pipeline makes no new version.
    """
    compiled = spec_of(build_pipeline(settings, image=image))
    spec = {"pipelineSpec": compiled["pipeline_spec"], "platformSpec": compiled["platform_spec"]}
    name = version_name(settings.pipeline, spec["pipelineSpec"], spec["platformSpec"])
    described = {"description": spec["pipelineSpec"]["pipelineInfo"]["description"]}
    pipeline = _resource("Pipeline", settings, settings.pipeline, {**described, "displayName": settings.pipeline})
    version = _resource(
        "PipelineVersion", settings, name, {**described, "displayName": name, "pipelineName": settings.pipeline, **spec}
    )
    provenance = {"commit": commit, "image": image or settings.image, "built-by": built_by}
    version["metadata"]["annotations"] = {f"{PREFIX}/{key}": value for key, value in provenance.items() if value}
    if commit:
        version["spec"]["codeSourceURL"] = f"{page(settings.repository)}/commit/{commit.removesuffix(DIRTY)}"
    return pipeline, version


def _resource(kind: str, settings: Settings, name: str, spec: Resource) -> Resource:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "labels": labels(settings)},
        "spec": spec,
    }


def _write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise SettingsInvalid(f"{path} cannot be written: {error.strerror}; name another file with --output") from None
