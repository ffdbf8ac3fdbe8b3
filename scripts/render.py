"""``jukebox render``: what an overlay is built to, or how the cluster differs from it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.syntax import Syntax

from pipeline.core.errors import SettingsInvalid
from pipeline.settings import read_settings
from scripts.clients.pipeline_server import find_server
from scripts.output import console


def command(
    overlay: Annotated[
        Path, typer.Argument(help="Folder with a kustomization, for example manifests/overlays/kubeflow/dev.")
    ],
    diff: Annotated[bool, typer.Option("--diff", help="Show what an apply would change in the cluster.")] = False,
) -> None:
    """Print the resources of an overlay, or what applying them would change.

    Exit codes with --diff: 0 if the cluster equals the overlay, 1 if it differs, 2 on an error.

    Example: `jukebox render manifests/overlays/openshift-ai/prod --diff`
    """
    text = build(overlay)
    if not diff:
        _show(text, "yaml")
        return
    namespace = find_server(read_settings()).namespace
    # As Argo CD applies it; Secrets are masked.
    words = ("diff", "--server-side", "--force-conflicts", f"--namespace={namespace}", "--filename=-")
    done = kubectl(*words, text=text)
    _show(done.stdout, "diff")
    if done.returncode > 1:
        print(done.stderr.strip(), file=sys.stderr)
    raise typer.Exit(min(done.returncode, 2))


def build(overlay: Path) -> str:
    """Return the resources that Kustomize builds, as YAML; raises SettingsInvalid with its words."""
    done = kubectl("kustomize", str(overlay))
    if done.returncode:
        raise SettingsInvalid(f"{overlay} cannot be built: {done.stderr.strip()}")
    return done.stdout


def kubectl(*arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run kubectl: that of this environment, else that of the machine."""
    program = shutil.which("kubectl", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if not program:
        raise SettingsInvalid("kubectl is not installed: install it, or run `make .venv/ready`, which does so")
    return subprocess.run([program, *arguments], input=text, capture_output=True, text=True, check=False)


def _show(text: str, language: str) -> None:
    screen = console()
    if screen.is_terminal:
        screen.print(Syntax(text, language, background_color="default"))
    else:
        print(text, end="")
