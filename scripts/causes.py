"""Why a pod of a run does not start, or has failed: its status, its events and Argo's words for it, made one sentence.

Kubernetes' texts are for whoever made the pod. Here each becomes a cause with a name that stays the same while the
numbers in its text change, with what to do, and with what is to be expected of it.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from kubernetes.utils.quantity import parse_quantity

from pipeline.core.sources import redact
from pipeline.core.texts import printable
from scripts.clients.kubernetes_api import Resource

SETTINGS = "manifests/settings/settings.yaml"
# What a container waits for that is on its way; every other reason of the kubelet's is something that it lacks.
ON_ITS_WAY = ("", "ContainerCreating", "PodInitializing")
IMAGE = re.compile(r"Image|Registry|Signature")  # of the kubelet's reasons, those that are about an image
# What an image registry says for good, in the words of containerd and CRI-O; all else may pass, as a registry that
# restarts does.
REFUSED = re.compile(r"\b40[13]\b|unauthorized|forbidden|denied|authorization|authentication required", re.IGNORECASE)
ABSENT = re.compile(r"not found|manifest unknown|name unknown", re.IGNORECASE)
# After these events, what hindered the same object before them is over.
OVER = ("Pulling", "Pulled", "Created", "Started", "ProvisioningSucceeded")
# What a pod lacks: the kubelet, the scheduler and the API server name kind and name so.
MISSING = re.compile(
    r'(secret|configmap|persistentvolumeclaim|serviceaccount|service account) "?([\w./-]+)"? not found'
)
KEY = re.compile(r"couldn't find key (\S+) in (\S+) (\S+)|references non-existent (?:secret|config) key: (\S+)")
KINDS = {"secret": "Secret", "configmap": "ConfigMap", "persistentvolumeclaim": "PersistentVolumeClaim"}
# What is not shown of a log; the numbers are bounds on how long one character is looked at.
PRIVATE_NAME = r"\w{0,30}(?:password|passwd|secret|token|access_key|credential)\w{0,30}"
PRIVATE = re.compile(
    rf"(\b(?:bearer|basic) |{PRIVATE_NAME}[\"']?(?:=|: ?(?=[\"']))[\"']?)[^\s\"',;&]{{4,}}", re.IGNORECASE
)
QUOTA = re.compile(r"exceeded quota: ([^,]+), requested: (.+), used: (.+), limited: (.+)")
# Of a scheduler's words, the setting that they are about; each kind of pods has its own.
TOO_SMALL = re.compile(r"Insufficient (?:(memory)|(cpu)|([\w.-]+/[\w.-]+))")
NOWHERE = {"node affinity/selector": "nodes", "untolerated taint": "taint", "volume node affinity": "nodes"}
KILLED, LIMIT = 137, 400  # an exit code: 128 and SIGKILL; and the most characters of a text that is not ours


class Fate(Enum):
    """What is to be expected of a cause."""

    WAITS = auto()  # it passes when others are done
    LASTS = auto()  # it may pass: a registry comes back, a node is added
    STAYS = auto()  # it does not pass unless somebody does something
    FAILED = auto()  # the pod has ended


VERBS = {Fate.WAITS: " waits:", Fate.LASTS: " cannot start:", Fate.STAYS: " cannot start:", Fate.FAILED: ":"}


@dataclass(frozen=True)
class Cause:
    """Why a pod has not started, or has failed.

    Attributes:
        pod: the pod's name, or that of Argo's node where there is no pod.
        key: a word that stays the same while ``text`` changes.
        text: one line for people.
    """

    pod: str
    step: str
    key: str
    text: str
    fate: Fate

    @property
    def sentence(self) -> str:
        """What follows the name of the step."""
        return f"{VERBS[self.fate]} {self.text}"

    def __str__(self) -> str:
        return f"{self.step}{self.sentence}"


def step_of(pod: Resource) -> str:
    """Return the step of a pod of Argo's, or the pod's name."""
    node = pod["metadata"].get("annotations", {}).get("workflows.argoproj.io/node-name", "")
    return step_of_node(node) or str(pod["metadata"]["name"])


def step_of_node(node: str) -> str:
    """Return the step in an Argo node's name: ``prod-train-save-x2v9k.root.train-model.executor(0)``."""
    parts = [re.sub(r"\(.*\)$", "", part) for part in node.split(".")[1:]]
    if parts and parts[-1] == "executor":
        parts.pop()
    return parts[-1] if parts else ""


def has_started(pod: Resource) -> bool:
    """Tell whether a pod's containers have begun."""
    return str(pod.get("status", {}).get("phase", "Pending")) != "Pending"


def has_failed(pod: Resource) -> bool:
    """Tell whether the pod has failed, or the container in which its step is."""
    ended = (each.get("state", {}).get("terminated", {}) for each in _containers(pod) if each.get("name") == "main")
    return pod.get("status", {}).get("phase") == "Failed" or any(each.get("exitCode") for each in ended)


def causes_of_pod(pod: Resource, events: Iterable[Resource] = (), log: str = "") -> Iterator[Cause]:
    """Yield why a pod has not started, or has failed for another reason than its step's own error.

    ``events`` are those of the pod and of its claims, ``log`` is the end of the log of a step that has failed.
    """
    name, step = str(pod["metadata"]["name"]), step_of(pod)

    def cause(key: str, text: str, fate: Fate) -> Cause:
        return Cause(name, step, key, _plain(text), fate)

    status = pod.get("status", {})
    if has_failed(pod):
        if found := _failed(pod, step, log):
            yield cause(*found, Fate.FAILED)
        return
    if has_started(pod):
        return
    events = sorted(events, key=_time)
    warnings = list(_warnings(events))
    for condition in status.get("conditions", ()):
        if condition.get("type", "PodScheduled") == "PodScheduled" and condition.get("status") == "False":
            yield cause(*_unscheduled(pod, step, condition))
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        if IMAGE.search(reason):
            # While it backs off, the kubelet may keep to itself what the registry has said; the event has it.
            pulls = [text for event in events if (text := event.get("message", "")).startswith("Failed to pull image")]
            yield cause("image", *_image(str(container.get("image", "")), reason, [message, *pulls][-1]))
        elif reason not in ON_ITS_WAY:
            yield cause(reason, *_lacking(f"{reason}: {message or container.get('image', '')}"))
    for reason, message in warnings:
        # The others' texts are in the status as well.
        if reason not in ("FailedScheduling", "Failed", "BackOff", "InspectFailed"):
            yield cause(reason, *_lacking(f"{reason}: {message}", _place(pod, step, message)))


def cause_of_node(node: Resource) -> Cause:
    """Return why Argo could not make a pod, or what it says of one that is gone."""
    name, message = str(node.get("name", "")), str(node.get("message", ""))
    step = step_of_node(name) or str(node.get("displayName", ""))
    if quota := QUOTA.search(message):
        text, fate = _quota(*quota.groups())
        return Cause(name, step, "quota", text, fate)
    if node.get("phase") != "Pending":
        killed = "OOMKilled" in message or f"exit code {KILLED}" in message
        text = _memory(step, "", "", sure="OOMKilled" in message) if killed else _short(message)
        return Cause(name, step, "failed", _plain(text), Fate.FAILED)
    text, fate = _lacking(message)
    return Cause(name, step, "refused", _plain(text), fate)


def _containers(pod: Resource) -> list[Resource]:
    status = pod.get("status", {})
    return [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]


def cleaned(text: str) -> str:
    """Return the text without what is secret in a URL, in a header, or in what is assigned to a name that says so.

    Nor does it have what a terminal would obey: a pod's log is what anybody's code has printed.
    """
    text = printable(text)
    text = re.sub(r"\w{1,20}://[^\s\"']+", lambda url: redact(url[0]), text)
    return PRIVATE.sub(r"\1…", text)


def _plain(text: str) -> str:
    return cleaned(" ".join(text.split()))


def _short(text: str) -> str:
    return text if len(text) <= LIMIT else f"{text[:LIMIT]}…"


def _warnings(events: Iterable[Resource]) -> Iterator[tuple[str, str]]:
    """Reason and last message of what hinders a pod or its claims by now; ``events`` are sorted by time."""
    over: dict[str, str] = {}
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for event in events:
        about, reason, when = event.get("involvedObject", {}).get("uid", ""), event.get("reason", ""), _time(event)
        if reason in OVER:
            found = {key: value for key, value in found.items() if key[0] != about}
            # Times are whole seconds: a later event may sort before an earlier one.
            over[about] = when
        elif event.get("type") == "Warning" and when != over.get(about):
            found[about, reason] = reason, str(event.get("message", ""))
    yield from found.values()


def _time(event: Resource) -> str:
    """When it happened last; RFC 3339 of one zone, so that texts compare as times do."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event.get("metadata", {}).get("creationTimestamp", ""))


def _lacking(text: str, remedy: str = "") -> tuple[str, Fate]:
    """What to do about a message that names what is missing; that stays, all else may pass."""
    text = _short(text)
    if found := MISSING.search(text):
        return f"{text}. Make the {KINDS.get(found[1], 'ServiceAccount')} {found[2]}.", Fate.STAYS
    if found := KEY.search(text):
        key, where = found[1] or found[4], f" to the {found[2]} {found[3]}" if found[2] else ""
        return f"{text}. Add the key {key}{where}.", Fate.STAYS
    # An image that would run as root, and an account or Pod Security that does not allow the pod.
    stays = re.search(r"runAsNonRoot|is forbidden|denied the request", text) and "exceeded quota" not in text
    remedy = "Give the image a numeric user other than 0" if "runAsNonRoot" in text else remedy
    return f"{text}{f'. {remedy}' if remedy else ''}", Fate.STAYS if stays else Fate.LASTS


def _image(image: str, reason: str, message: str) -> tuple[str, Fate]:
    """What to do about an image that the node does not get: the registry's answer says."""
    answer = re.split(r'(?:failed to [a-z ]+|Failed to pull image|[Bb]ack-off pulling image) "[^"]*": ', message)[-1]
    answer = _short(re.sub(r"^(ErrImagePull: |rpc error: code = \w+ desc = )+", "", answer).removeprefix(f"{image}: "))
    answer = f"{reason}: {answer or image}"
    where = f" ({image})" if image not in answer else ""
    if reason == "InvalidImageName":
        return f"{answer}{where}. Name a valid image in {SETTINGS}.", Fate.STAYS
    if REFUSED.search(answer):
        return (
            f"{answer}{where}. Check that the Secret of pull-secret in {SETTINGS} is for this registry.",
            Fate.STAYS,
        )
    if ABSENT.search(answer):
        return f"{answer}{where}. Push the image, or start a version whose image exists.", Fate.STAYS
    return f"{answer}{where}. Check that the node reaches the registry and trusts its certificate.", Fate.LASTS


def _unscheduled(pod: Resource, step: str, condition: Resource) -> tuple[str, str, Fate]:
    reason, message = str(condition.get("reason", "")), str(condition.get("message", ""))
    if reason == "SchedulingGated":
        return reason, "it waits in the queue (SchedulingGated)", Fate.WAITS
    # What was tried in vain to make room says nothing of why there is none.
    message = re.sub(r"\.? (no new claims to deallocate, )?preemption: .*|\. not found$", "", message, flags=re.DOTALL)
    return reason, *_lacking(f"{reason}: {message}", _place(pod, step, message))


def _place(pod: Resource, step: str, message: str) -> str:
    """What to do about a pod for which there is no node."""
    if _is_driver(step):
        return ""
    if found := TOO_SMALL.search(message):
        size = found[1] or found[2] or "gpus"
        return f"Lower {'train' if step == 'train-model' else 'step'}-{size} in {SETTINGS}, or add such a node."
    claims = any("persistentVolumeClaim" in volume for volume in pod.get("spec", {}).get("volumes", ()))
    kind = "train-" if step == "train-model" else "store-" if claims else ""
    for words, setting in NOWHERE.items():
        if words in message:
            return f"See {kind}{setting} in {SETTINGS}."
    if "Multi-Attach" in message:
        return f"Its volume is bound to one node: set store-nodes in {SETTINGS} to that node."
    if "unbound immediate PersistentVolumeClaims" in message or "storageclass" in message:
        return f"See storage-class in {SETTINGS}."
    return ""


def _quota(name: str, requested: str, used: str, limited: str) -> tuple[str, Fate]:
    """Which quota, and what of it is asked, used and allowed; what is more than all of it never fits."""
    asked, taken, most = (
        dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair) for text in (requested, used, limited)
    )
    parts = [f"{key}: {each} more than {taken.get(key)} of {most.get(key)}" for key, each in asked.items()]
    never = any(_number(each) > _number(most.get(key, "")) for key, each in asked.items())
    kinds = sorted({key.rpartition(".")[2] for key in asked} & {"cpu", "memory", "storage"})
    raised = " and ".join(f"quota-{kind}" for kind in kinds)
    ours = f"raise {raised} in {SETTINGS}" if name == "jukebox" and raised else "ask for a larger quota"
    remedy = (
        f"{ours[0].upper()}{ours[1:]}: it exceeds the whole quota." if never else f"Wait for other pods, or {ours}."
    )
    return f"the quota {name} is used up: {', '.join(parts)}. {remedy}", Fate.STAYS if never else Fate.WAITS


def _number(quantity: str) -> float:
    try:
        return float(parse_quantity(quantity))
    except ValueError:
        return 0.0


def _failed(pod: Resource, step: str, log: str) -> tuple[str, str] | None:
    """A word for why a pod has failed, and what follows its name; None if its step says it itself."""
    status, spec = pod.get("status", {}), pod.get("spec", {})
    reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    if reason == "DeadlineExceeded":
        seconds = spec.get("activeDeadlineSeconds")
        limit = f" of {seconds / 60:.3g} minutes" if seconds else ""
        return (
            reason,
            f"{reason}: stopped at its time limit{limit}. The limits are in pipeline/prod_train_save_pipeline.py.",
        )
    if reason:
        again = " Start the run again." if re.search("node|Node", message) else ""
        return reason, f"{reason}: {_short(message).rstrip('. ')}.{again}"
    for condition in status.get("conditions", ()):
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            why = f"{condition.get('reason', '')}: {_short(str(condition.get('message', '')))}"
            return "DisruptionTarget", f"{why.rstrip('. ')}. Start the run again."
    limits = {
        each["name"]: each.get("resources", {}).get("limits", {}).get("memory", "")
        for each in spec.get("containers", ())
    }
    for container in _containers(pod):
        ended, name = container.get("state", {}).get("terminated", {}), str(container.get("name", ""))
        code, why = ended.get("exitCode", 0), str(ended.get("reason", ""))
        # The launcher outlives its step if only that is killed, and ends with 1.
        if why == "OOMKilled" or code == KILLED or (name == "main" and code and "signal: killed" in log):
            if name == "main":
                return "memory", _memory(step, limits.get(name, ""), log, sure=why == "OOMKilled")
            return "memory", f"the platform's container {name} was killed ({why}, exit code {code})."
        if code and why not in ("Error", "Completed", ""):  # as ContainerCannotRun, StartError
            return why, f"{why}: {_short(str(ended.get('message', ''))).rstrip('. ')}."
    return None


def _memory(step: str, limit: str, log: str, *, sure: bool = True) -> str:
    peaks = [int(each) for each in re.findall(r"peak memory (\d+) MiB", log)]
    peak = f", {max(peaks)} MiB were used before" if peaks else ""
    size = f": its limit is {limit}{peak}" if limit else ""
    setting = f"{'train' if step == 'train-model' else 'step'}-memory"
    remedy = "Raise its limit in the platform's settings." if _is_driver(step) else f"Raise {setting} in {SETTINGS}."
    words = "out of memory" if sure else "killed, most likely because it ran out of memory"
    return f"{words} (exit code {KILLED}){size}. {remedy}"


def _is_driver(step: str) -> bool:
    """Tell whether it is no step, but what Kubeflow runs before one."""
    return step.endswith("-driver")
