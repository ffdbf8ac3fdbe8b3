"""``jukebox secrets``: what the project must not have in Git, made or taken from files, straight into the cluster."""

import json
import re
import secrets
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.core.errors import SettingsInvalid
from pipeline.prod_train_save_pipeline import S3_KEYS
from pipeline.settings import Settings, read_settings
from scripts.clients.kubernetes_api import SECRETS, Cluster, Resource, ci_cluster, project_cluster
from scripts.output import console
from scripts.replay import SECRET, SENDERS

# The listener takes no bearer token that is shorter.
SHORTEST = 16  # characters
CONFIG = ".dockerconfigjson"  # the key of credentials for registries
KEYS = tuple(sorted(set(SENDERS.values())))
# Requests a second that the listener may send to the API server, two for each run; without, it is five in all, and news
# of a thousand uploaded objects keep a push waiting for minutes.
LISTENER = {"qps": "50", "burst": "100"}

ALERT = "jukebox-alert"  # the Secret of the namespace of the runs with the token of alerts, for Alertmanager


class Place(StrEnum):
    """Which of the project's namespaces has a Secret."""

    CI, RUNS, BOTH = "ci-namespace", "namespace", "both"


@dataclass(frozen=True)
class Wanted:
    """A Secret of the project. What has no ``option`` is generated; what is not ``needed`` something does without.

    ``fixed`` are values that are no secret, but are read from a Secret alone.
    """

    name: str
    place: Place
    keys: tuple[str, ...]
    purpose: str
    option: str = ""
    needed: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)


def wanted(settings: Settings) -> tuple[Wanted, ...]:
    """All Secrets that the project uses, but ALERT, which holds a copy."""
    data = any(uri.startswith("s3://") for uri in settings.data.values())
    store = settings.model_store.startswith("s3://")
    artifacts = settings.platform == "openshift-ai"  # Kubeflow has its own
    repository = {"repository": settings.repository}
    return (
        Wanted(SECRET, Place.CI, KEYS, "the listener accepts senders that have one of them", needed=True),
        Wanted(
            "jukebox-listener", Place.CI, tuple(LISTENER), "the listener does not start without", "", True, LISTENER
        ),
        Wanted(
            "jukebox-git-host",
            Place.CI,
            ("token", "repository"),
            "reads a private repository, shows a commit's status, opens pull requests",
            "--git-token-file",
            fixed=repository,
        ),
        Wanted("jukebox-registry", Place.CI, (CONFIG,), "pushes the training image", "--registry-file"),
        Wanted("jukebox-chat", Place.CI, ("url",), "sends a chat the outcome of a training", "--chat-file"),
        Wanted(settings.data_secret, Place.BOTH, S3_KEYS[:2], "reads data at s3://", "--data-file", data),
        Wanted(settings.s3_secret, Place.RUNS, S3_KEYS[:2], "stores the artifacts of runs", "--s3-file", artifacts),
        Wanted(settings.store_secret, Place.RUNS, S3_KEYS[:2], "adds models at s3://", "--store-file", store),
        *(
            [Wanted(settings.pull_secret, Place.BOTH, (CONFIG,), "pulls every image", "--pull-file", True)]
            if settings.pull_secret
            else []
        ),
    )


def clusters(settings: Settings) -> dict[Place, list[Cluster]]:
    """Return, by the place of a Secret, the namespaces that have it."""
    ci, runs = ci_cluster(settings), project_cluster(settings)
    return {Place.CI: [ci], Place.RUNS: [runs], Place.BOTH: [ci, runs]}


def command(
    git_token_file: Annotated[
        Path | None,
        typer.Option(help="File with a token of the Git host; docs/install/environment.md lists the rights it needs."),
    ] = None,
    registry_file: Annotated[
        Path | None, typer.Option(help="File that `podman login --authfile` writes, with the right to push.")
    ] = None,
    pull_file: Annotated[
        Path | None, typer.Option(help="The same with the right to pull only, for the Secret that pull-secret names.")
    ] = None,
    data_file: Annotated[
        Path | None,
        typer.Option(
            help=f"File with credentials to read the data, lines {S3_KEYS[0]}=…; also {', '.join(S3_KEYS[1:])}."
        ),
    ] = None,
    s3_file: Annotated[Path | None, typer.Option(help="The same, to store the artifacts of runs.")] = None,
    store_file: Annotated[Path | None, typer.Option(help="The same, to add to the model store.")] = None,
    chat_file: Annotated[Path | None, typer.Option(help="File with the address of an incoming webhook.")] = None,
    rotate: Annotated[list[str] | None, typer.Option(help=f"Generate this key again: {', '.join(KEYS)}.")] = None,
) -> None:
    """Create the Secrets that the project needs and list missing ones. Values are never printed or written to files.

    Existing values are kept, unless you give a file or rotate a key. After a rotation, the sender needs the new key.
    The Git host's token is stored with the repository of the settings, and is sent to no other.

    Example: `jukebox secrets --git-token-file token --data-file data.env --s3-file s3.env`
    """
    settings = read_settings()
    files = {
        "--git-token-file": (git_token_file, _line("token")),
        "--registry-file": (registry_file, _registry),
        "--pull-file": (pull_file, _registry),
        "--data-file": (data_file, _s3),
        "--s3-file": (s3_file, _s3),
        "--store-file": (store_file, _s3),
        "--chat-file": (chat_file, _line("url")),
    }
    # All of them are read before the first one is written.
    given = {option: read(_text(file, option)) for option, (file, read) in files.items() if file}
    if unknown := sorted(set(rotate or ()) - set(KEYS)):
        raise SettingsInvalid(f"{', '.join(unknown)} cannot be rotated: expected one of {', '.join(KEYS)}")
    if pull_file and not settings.pull_secret:
        raise SettingsInvalid("--pull-file is for the Secret that pull-secret names: set pull-secret in the settings")
    places = clusters(settings)
    [ci], [runs] = places[Place.CI], places[Place.RUNS]
    for name in _move([each.name for each in wanted(settings) if each.place is Place.CI], places):
        print(f"Secret {name} is moved from {runs.namespace}, where pushed code could read it, to {ci.namespace}")
    table = Table("Namespace", "Secret", "Key", "State", box=None)
    for each in wanted(settings):
        for cluster in places[each.place]:
            for key, state in write(cluster, each, given.get(each.option, {}), rotate or ()).items():
                table.add_row(cluster.namespace, each.name, key, state)
    token = {"token": values(ci.read(SECRETS, SECRET))["alert"]}
    alert = Wanted(ALERT, Place.RUNS, ("token",), "proves to the listener that an alert is genuine", "--rotate alert")
    if values(runs.read(SECRETS, ALERT)) == token:
        token = {}
    table.add_row(runs.namespace, ALERT, "token", write(runs, alert, token, ())["token"])
    screen = console()
    screen.print(table)
    screen.print(
        f"To show one, for its sender: kubectl get secret {SECRET} --namespace {ci.namespace} "
        "--output jsonpath='{.data.KEY}' | base64 --decode",
        soft_wrap=True,
        markup=False,
    )


def _move(names: Sequence[str], places: Mapping[Place, list[Cluster]]) -> Iterator[str]:
    """Move Secrets of an installation from when it had one namespace; yield their names.

    Raises SettingsInvalid if there is another of the name: which of them the senders know, only a person can tell.
    """
    [ci], [runs] = places[Place.CI], places[Place.RUNS]
    for name in names:
        old, new = runs.read(SECRETS, name), ci.read(SECRETS, name)
        # What another program keeps, it would make again.
        if not old or old["metadata"].get("ownerReferences"):
            continue
        if not new:
            metadata = {key: old["metadata"][key] for key in ("name", "labels") if key in old["metadata"]}
            kept: Resource = {key: old[key] for key in ("type", "data") if key in old}
            ci.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, **kept})
        elif not values(old).items() <= values(new).items():
            raise SettingsInvalid(
                f"Secret {name} is in {runs.namespace} and, with different values, in {ci.namespace}. Store those that "
                f"the senders use in {ci.namespace}, and kubectl delete secret {name} --namespace {runs.namespace}"
            )
        runs.delete(SECRETS, name)
        yield name


def write(cluster: Cluster, each: Wanted, given: Mapping[str, str], rotate: Sequence[str]) -> dict[str, str]:
    """Write what of a Secret is given, missing or to be rotated; return each key's state, in words.

    Raises SettingsInvalid where another program keeps the Secret and would undo it.
    """
    there = cluster.read(SECRETS, each.name)
    held = values(there)
    new = dict(given)
    if each.fixed and (new or held or not each.option):
        # A new token is for the address that the settings have now.
        new |= {key: value for key, value in each.fixed.items() if new or key not in held}
    elif not each.option:
        new = {
            key: secrets.token_urlsafe(32) for key in each.keys if key in rotate or len(held.get(key, "")) < SHORTEST
        }
    owners = (there or {}).get("metadata", {}).get("ownerReferences", [])
    if new and owners:
        raise SettingsInvalid(
            f"Secret {each.name} is managed by {owners[0]['kind']} {owners[0]['name']}, which would undo a change: "
            "change its source"
        )
    if new and there:
        cluster.patch(SECRETS, each.name, {"stringData": new})
    elif new:
        labels = {"app.kubernetes.io/name": each.name.removeprefix("jukebox-"), "app.kubernetes.io/part-of": "jukebox"}
        kind = "kubernetes.io/dockerconfigjson" if CONFIG in new else "Opaque"
        secret = {"metadata": {"name": each.name, "labels": labels}, "type": kind, "stringData": new}
        cluster.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", **secret})
    missing = f"missing: set it with {each.option}; it {each.purpose}" + ("" if each.needed else " (optional)")
    states = {key: "there" if held.get(key) else missing for key in each.keys}
    return states | {key: "replaced" if held.get(key) else "created" for key in new}


def values(secret: Resource | None) -> dict[str, str]:
    """What a Secret holds, for our own eyes."""
    data = (secret or {}).get("data") or {}
    return {key: b64decode(value).decode(errors="replace").strip() for key, value in data.items()}


def _text(file: Path, option: str) -> str:
    try:
        text = file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise SettingsInvalid(f"{option} {file} cannot be read: {error}") from None
    if not text:
        raise SettingsInvalid(f"{option} {file} is empty")
    return text


def _line(key: str) -> Callable[[str], dict[str, str]]:
    def read(text: str) -> dict[str, str]:
        if re.search(r"\s", text):
            raise SettingsInvalid(f"the file of the {key} holds more than one word: expected only the {key}")
        return {key: text}

    return read


def _registry(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)["auths"]
    except (ValueError, TypeError, KeyError):
        found = None
    if not isinstance(found, dict) or not found:
        raise SettingsInvalid(
            "the registry's file is not JSON with auths: write it with `podman login --authfile FILE`"
        )
    return {CONFIG: text}


def _s3(text: str) -> dict[str, str]:
    lines = [line.partition("=") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = {key.strip(): value.strip().strip("\"'") for key, _, value in lines}
    missing = [key for key in S3_KEYS[:2] if not found.get(key)]
    unknown = sorted(set(found) - set(S3_KEYS))
    if missing or unknown:
        # Not the unknown ones themselves: a line may be a key that lacks its name.
        raise SettingsInvalid(
            f"the S3 file lacks {', '.join(missing) or 'nothing'} and has {len(unknown)} unknown lines: "
            f"expected lines NAME=value with {', '.join(S3_KEYS)}"
        )
    return found
