"""``jukebox wait-served``: wait until production serves the version that a commit pins, and say since when."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from pipeline.core.errors import ClusterAway, HostRefuses, JukeboxError, NotServed, ServerUnavailable, SettingsInvalid
from pipeline.core.texts import one_line, printable
from pipeline.settings import Settings, read_settings
from scripts import promotion_record
from scripts.causes import causes_of_pod
from scripts.clients.kubernetes_api import CONFIG_MAPS, PODS, PREFIX, Cluster, Resource, project_cluster
from scripts.git import Clone, GitSecret, git
from scripts.kept import read_unfit
from scripts.pins import PIN, Pin, history, pin_at
from scripts.proposals import proposals, without_hold
from scripts.results import ResultDir, write_results
from scripts.rollback import after_failed_check

SYNCED = "jukebox-pin"  # the ConfigMap with the pin, which only production has
VERIFY, CHECK = "verify", "check-served"  # the pods that Argo CD starts before and after it serves a version
SHORT = 400  # characters of the cause of a failure, if it must fit in a line


class CheckFailed(NotServed):
    """Production serves ``pin``, and its answers are wrong; ``ended`` (RFC 3339) is when that was found."""

    def __init__(self, message: str, pin: Pin, ended: str) -> None:
        super().__init__(message)
        self.pin = pin
        self.ended = ended


@dataclass(frozen=True)
class Pace:
    """Seconds: between two looks, and how long a pod may have failed until Argo CD's next attempt is not waited for."""

    poll: float = 10
    again: float = 60


def command(
    commit: Annotated[str, typer.Argument(help="Full hash of the commit, which is released.")],
    git_secret: GitSecret = None,
    timeout: Annotated[float, typer.Option(help="Minutes to wait.")] = 35,
    result_dir: ResultDir = None,
) -> None:
    """Wait until production serves the version that a commit pins and has answered its golden request correctly.

    Argo CD verifies the version before it serves it (`jukebox verify`), and checks the server's answer afterwards
    (`jukebox check-served`). If one of them fails, its message is the error. If a newer commit is released meanwhile,
    its pin is the one that counts. Without a pinned version, or if production is on another cluster, there is nothing
    to wait for.

    Who approved the version is recorded in the ConfigMap jukebox-promotions. If the answers are wrong and the settings
    say rollback-on-failure, a rollback is proposed.

    --result-dir gets the files `served` with the version's number, `since` with the time, and `why` with the cause in
    one line if production does not serve the version.

    Example: `jukebox wait-served 0a1b… --git-secret secret`
    """
    settings = read_settings()
    cluster = project_cluster(settings)
    if not settings.prod_cluster or cluster.read(CONFIG_MAPS, SYNCED) is None:
        print("Nothing to wait for: production is not on this cluster")
        write_results(result_dir, served="", since="", why="")
        return
    with TemporaryDirectory() as bare:
        watch = Watch(cluster, Clone(Path(bare), settings.repository, git_secret), settings, Pace())
        try:
            pin, since = watch.wait(commit, timeout * 60)
        except JukeboxError as error:
            write_results(result_dir, served="", since="", why=_line(str(error)))
            if isinstance(error, CheckFailed) and settings.rollback_on_failure == "yes":
                print(roll_back(settings, cluster, error, git_secret), flush=True)
            raise
    if pin.version is None:
        print("Production serves nothing: no version is pinned")
    else:
        since = record(settings, cluster, pin, since, git_secret)
        print(f"Production serves version {pin.version} since {since}")
    write_results(result_dir, served=str(pin.version or ""), since=since, why="")


def record(settings: Settings, cluster: Cluster, pin: Pin, since: str, secret: Path | None) -> str:
    """Record who approved the version that production serves, unless it is recorded; return since when it is served.

    If that cannot be found out or written, it prints why: production serves the version all the same.
    """
    try:
        records = promotion_record.read(cluster)
        with proposals(settings, secret) as proposed:
            pins = history(proposed.clone, settings.prod_branch)
            before = next((each for each in pins if without_hold(each) != without_hold(pin)), None)
            commit = _brought(proposed.clone, settings.prod_branch, pin)
            if records and records[0].get("commit") == commit:
                # A later sync of the same version checked it again.
                return str(records[0].get("served_since") or since)
            found = promotion_record.build(proposed.host, settings, commit, before, pin)
        promotion_record.write(cluster, found, since)
        print(promotion_record.in_words({**found, "served_since": since}))
    except (ServerUnavailable, SettingsInvalid) as error:
        print(f"The promotion was not recorded: {error}")
    return since


def _brought(clone: Clone, branch: str, pin: Pin) -> str:
    """The commit of a branch that brought the version of its pin: of a merge that commit, not the one it has merged."""
    tip, found = clone.tip(branch) or "", ""
    for commit in git(clone.folder, "rev-list", "--first-parent", tip, "--", PIN).decode().split():
        try:
            same = without_hold(pin_at(clone, commit)) == without_hold(pin)
        except SettingsInvalid:
            same = False
        if found and not same:
            break
        found = commit
    return found


def roll_back(settings: Settings, cluster: Cluster, error: CheckFailed, secret: Path | None) -> str:
    """Propose a rollback of what has failed its check, if the limits allow it; return in a sentence what was done."""
    try:
        records = promotion_record.read(cluster)
        with proposals(settings, secret) as proposed:
            ended = datetime.fromisoformat(error.ended)
            unfit = read_unfit(cluster, settings.model_name)
            return after_failed_check(proposed, error.pin, ended, str(error), records, unfit)
    except (ServerUnavailable, SettingsInvalid, ValueError) as problem:
        return f"Nothing was rolled back: {problem}"


@dataclass
class Watch:
    """The view of what production serves.

    Attributes:
        cluster: that of production, in the namespace of the models.
        clone: an empty one, to read pins from.
    """

    cluster: Cluster
    clone: Clone
    settings: Settings
    pace: Pace
    say: Callable[[str], None] = lambda text: print(text, flush=True)
    _said: str = ""

    def wait(self, commit: str, timeout: float) -> tuple[Pin, str]:
        """Return the pin that production serves, and the time (RFC 3339) since when; empty if nothing is pinned.

        Raises NotServed if one of Argo CD's checks fails, or none has passed within ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        pin = self._pin(commit)
        failed: dict[str, float] = {}  # when a pod was first seen to have failed, by its uid
        while True:
            commit, pin = self._newest(commit, pin)
            if pin.version is None:
                return pin, ""
            pods = self._pods(pin)
            # Each sync makes the first pod anew. Without it, a check of this version is of an earlier sync.
            verified = any(map(_is_verification, pods))
            if verified and (since := next(filter(None, map(_passed, pods)), "")):
                return pin, since
            now = time.monotonic()
            for pod in filter(_has_failed, pods):
                if now - failed.setdefault(pod["metadata"]["uid"], now) >= self.pace.again:
                    raise _not_served(pin, pod)
            if now >= deadline:
                raise self._late(pin, pods, timeout)
            self._once(f"Waiting until production serves version {pin.version}")
            time.sleep(max(0.0, min(self.pace.poll, deadline - now)))

    def _pin(self, commit: str) -> Pin:
        self.clone.fetch(commit, depth=1)
        return pin_at(self.clone, commit)

    def _newest(self, commit: str, pin: Pin) -> tuple[str, Pin]:
        """The released commit and its pin: a later release may have pinned another version."""
        try:
            tip = self.clone.tip(self.settings.prod_branch) or commit
            return tip, self._pin(tip) if tip != commit else pin
        except HostRefuses as error:
            self._once(f"{error} Waiting for what {commit[:12]} pins.")
            return commit, pin

    def _pods(self, pin: Pin) -> list[Resource]:
        """The pods with which Argo CD verifies this pin and checks what is served; none while the cluster is away."""
        marks = {f"{PREFIX}/version": str(pin.version), f"{PREFIX}/sha256": pin.sha256}
        try:
            found = [
                pod for name in (VERIFY, CHECK) for pod in self.cluster.list(PODS, f"app.kubernetes.io/name={name}")
            ]
        except ClusterAway as error:
            self._once(f"{error} Waiting for it.")
            return []
        return [pod for pod in found if marks.items() <= pod["metadata"].get("annotations", {}).items()]

    def _late(self, pin: Pin, pods: list[Resource], timeout: float) -> NotServed:
        """What is known of a version that is not served in time."""
        application = f"{self.cluster.namespace}.prod"
        causes = [str(cause) for pod in pods for cause in causes_of_pod(pod)]
        states = [f"the pod {pod['metadata']['name']} is {pod['status'].get('phase', 'Pending')}" for pod in pods]
        return NotServed(
            f"Production has not served version {pin.version} within {timeout / 60:g} minutes: "
            f"{'; '.join(causes or states) or 'Argo CD has not verified it'}. See the Application {application} in "
            "Argo CD, which continues"
        )

    def _once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.say(text)


def _name(pod: Resource) -> str:
    return str(pod["metadata"]["labels"]["app.kubernetes.io/name"])


def _is_verification(pod: Resource) -> bool:
    return _name(pod) == VERIFY


def _passed(pod: Resource) -> str:
    """When the check of what is served has passed; empty if it has not, or this is another pod."""
    if _name(pod) != CHECK or pod["status"].get("phase") != "Succeeded":
        return ""
    return str(_ended(pod).get("finishedAt", "")) or str(pod["metadata"]["creationTimestamp"])


def _has_failed(pod: Resource) -> bool:
    return bool(pod["status"].get("phase") == "Failed")


def _ended(pod: Resource) -> Resource:
    """The end of a pod's container; empty if it has not ended."""
    return next(
        (found for each in pod["status"].get("containerStatuses", ()) if (found := each["state"].get("terminated"))), {}
    )


def _not_served(pin: Pin, pod: Resource) -> NotServed:
    """The error for a check that has failed, with its own words."""
    status, ended = pod["status"], _ended(pod)
    said = printable(str(ended.get("message") or status.get("message") or status.get("reason") or "")).strip()
    said = said or f"it ended with exit code {ended.get('exitCode', 'unknown')}"
    if _name(pod) == VERIFY:
        return NotServed(f"Version {pin.version} is not served, since its verification failed: {said}")
    found = str(ended.get("finishedAt", "")) or str(pod["metadata"]["creationTimestamp"])
    return CheckFailed(
        f"Production serves version {pin.version}, and the check of its answers failed: {said}", pin, found
    )


def _line(text: str) -> str:
    """A text as one line, shortened."""
    line = one_line(text)
    return line if len(line) <= SHORT else f"{line[: SHORT - 1]}…"
