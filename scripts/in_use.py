"""``jukebox in-use``: which versions of the model store are needed by what is outside of it."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.documents import to_json
from pipeline.core.errors import HostRefuses, SettingsInvalid
from pipeline.settings import Settings, read_settings, settings_file
from scripts.clients.git_hosts import GitHost, State, connect
from scripts.clients.kfp_server import Kfp
from scripts.clients.kubernetes_api import CONFIG_MAPS, project_cluster
from scripts.clients.pipeline_server import find_server
from scripts.git import Clone, GitSecret, token_file
from scripts.pins import PIN, Pin, history, pin_at

NAME = "jukebox-in-use"  # the ConfigMap
FILE = "in-use.json"  # its key
FRESH = timedelta(hours=6)
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")  # the states of a run that does nothing more
_MARKER = re.compile(r"<!-- (?:promotion|rollback): [^>]*\bversion=([1-9][0-9]*)\b")


def command(
    git_secret: GitSecret = None,
    write: Annotated[
        bool, typer.Option("--write", help=f"Write it to the ConfigMap {NAME}, which `jukebox retain` reads, too.")
    ] = False,
) -> None:
    """Print, as JSON, which model versions must stay because something outside the model store needs them.

    These are the versions that Git pins or has pinned lately, those that an open pull request proposes, and those that
    a running run compares its model with. If one of these cannot be read, nothing is printed or written.

    Example: `jukebox in-use --git-secret /etc/git-host --write`
    """
    settings = read_settings()
    text = find_in_use(settings, git_secret).dump()
    if write:
        # With the settings: bootstrap stores them in the other namespace alone.
        data = {FILE: text, "settings.yaml": settings_file().read_text("utf-8")}
        project_cluster(settings).patch(CONFIG_MAPS, NAME, {"data": data})
    print(text)


@dataclass(frozen=True)
class InUse:
    """The versions of a model that are needed by what is outside of the store.

    Attributes:
        made: when it was found.
        pinned: the versions that Git pins now; a store without one of them is not the one that is meant.
        reasons: by the number of each version why it must stay.
    """

    model: str
    made: datetime
    pinned: list[int]
    reasons: Mapping[int, list[str]]

    def dump(self) -> str:
        """Return it as JSON, in one line."""
        return to_json({"model": self.model, "made": _text(self.made), "pinned": self.pinned, "reasons": self.reasons})


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: str
    made: datetime
    pinned: list[int]
    reasons: dict[int, list[str]]


def read_in_use(file: Path, model: str, now: datetime) -> InUse:
    """Read what ``dump`` has written; raises SettingsInvalid unless it is of this model and of the last six hours."""
    remedy = f"Nothing is deleted. Look at the last job of the CronJob {NAME}, or run `jukebox in-use --write`"
    try:
        found = _Shape.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        [why, *_] = str(error).splitlines()
        raise SettingsInvalid(f"{file} does not say which versions are in use: {why}. {remedy}") from None
    if found.model != model:
        raise SettingsInvalid(f"{file} is about the model {found.model!r}, expected {model!r}. {remedy}")
    check_fresh(found.made, now, str(file), remedy)
    return InUse(found.model, found.made, found.pinned, found.reasons)


def check_fresh(made: datetime, now: datetime, what: str, remedy: str) -> None:
    """Raise SettingsInvalid if ``made`` is older than six hours, in the future, or without a zone."""
    if made.tzinfo is None or not -timedelta(minutes=5) < now - made < FRESH:
        hours = FRESH // timedelta(hours=1)
        raise SettingsInvalid(f"{what} is of {made.isoformat()}, expected at most {hours} hours ago. {remedy}")


def find_in_use(settings: Settings, secret: Path | None) -> InUse:
    """Ask Git, its host and the pipeline server; ``secret`` is a folder of the Secret jukebox-git-host.

    Raises HostRefuses, ServerUnavailable or SettingsInvalid if one of them cannot be asked: then it is not known what
    may be deleted.
    """
    file = token_file(secret, settings.repository)
    host = connect(settings, file.read_text().strip() if file else "")
    reasons: dict[int, list[str]] = defaultdict(list)
    with TemporaryDirectory() as folder:
        clone = Clone(Path(folder), settings.repository, secret)
        pinned = _of_pins(clone, settings, reasons)
        _of_proposals(clone, host, settings, reasons)
    _of_runs(Kfp(partial(find_server, settings)), settings.model_name, reasons)
    return InUse(settings.model_name, datetime.now(UTC), pinned, reasons)


def _of_pins(clone: Clone, settings: Settings, reasons: dict[int, list[str]]) -> list[int]:
    """Add what Git pins and has pinned; return what it pins now."""
    if clone.tip(settings.branch) is None:
        raise HostRefuses(
            f"The repository has no branch {settings.branch}. Check repository and branch in the settings"
        )
    current: list[int] = []
    # The second branch serves what the first one pins, once it is released; it may be behind.
    for branch in (settings.branch, settings.prod_branch):
        pins = history(clone, branch)
        wrong = {pin.model for pin in pins[:1]} - {settings.model_name}
        if wrong:
            raise SettingsInvalid(f"{PIN} of {branch} pins the model {wrong.pop()!r}, expected {settings.model_name!r}")
        if pins and pins[0].version:
            current.append(pins[0].version)
            _add(reasons, pins[0].version, f"Git pins it on {branch}")
        for back, version in enumerate(_promoted(pins)[: int(settings.keep_pinned)]):
            if back or not pins[0].version:
                _add(reasons, version, f"production was pinned to it {back or 1} promotion{'s' * (back > 1)} ago")
    return sorted(set(current))


def _promoted(pins: list[Pin]) -> list[int]:
    """The versions that were pinned, newest first: a new hold, or no version, is not another promotion."""
    return [version for version, _ in groupby(pin.version for pin in pins if pin.version)]


def _of_proposals(clone: Clone, host: GitHost, settings: Settings, reasons: dict[int, list[str]]) -> None:
    for kind in ("promote", "rollback"):
        branch = f"{kind}/{settings.model_name}/prod"
        for request in host.pull_requests(branch, settings.branch):
            if request.state is not State.OPEN:
                continue
            found = {int(number) for number in _MARKER.findall(request.body)}
            # What would be merged; a person may have edited the text.
            if tip := clone.tip(branch):
                clone.fetch(tip)
                if version := pin_at(clone, tip).version:
                    found.add(version)
            if not found:
                raise HostRefuses(
                    f"It cannot be read which version the pull request {request.url} proposes. Close it, or let "
                    f"`jukebox {kind}` propose it again"
                )
            for version in found:
                _add(reasons, version, f"the open pull request {request.number} proposes it")


def _of_runs(kfp: Kfp, model: str, reasons: dict[int, list[str]]) -> None:
    experiment = kfp.experiment(model)
    for run in kfp.runs(experiment) if experiment else ():
        if run.get("state") in ENDED:
            continue
        parameters = run.get("runtime_config", {}).get("parameters", {})
        for name in ("champion_version", "served_version"):
            if (number := str(parameters.get(name, ""))).isdecimal() and int(number):
                _add(reasons, int(number), f"run {run['run_id']} compares its model with it")


def _add(reasons: dict[int, list[str]], version: int, why: str) -> None:
    if why not in reasons[version]:
        reasons[version].append(why)


def _text(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
