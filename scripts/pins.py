"""The pin: the file in Git that says which version production serves, by its number and its content."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipeline.core.documents import to_json
from pipeline.core.errors import SettingsInvalid

if TYPE_CHECKING:
    from scripts.git import Clone

PIN = "manifests/pins/prod/kustomization.yaml"  # path in the repository

_FILE = """\
---
# The version that production serves: its number in the model store, and the sha256 of its model.onnx. Production serves
# nothing if there is no version. `jukebox promote` and `jukebox rollback` propose changes of it: change its values
# only. hold says why no promotion is proposed, as after a rollback: empty it to allow promotions again.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
configMapGenerator:
  - name: jukebox-pin
    literals:
      - model={model}
      - version={version}
      - sha256={sha256}
      - {hold}
    options:
      disableNameSuffixHash: true
      labels:
        app.kubernetes.io/name: pin
        app.kubernetes.io/component: serving
        app.kubernetes.io/part-of: jukebox
"""
_TO_DO = "Restore it from an earlier commit, or from the release, and change its values only"
_FORM = re.compile(r"model=(?P<model>.*)\nversion=(?P<version>|[1-9][0-9]*)\nsha256=(?P<sha256>.*)\nhold=(?P<hold>.*)")


@dataclass(frozen=True)
class Pin:
    """What the pin file says; raises SettingsInvalid if these values cannot be in one."""

    model: str
    version: int | None = None  # None: nothing is pinned
    sha256: str = ""  # of model.onnx; empty if nothing is pinned
    hold: str = ""  # why nothing is proposed; empty: no hold

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.model):
            raise SettingsInvalid(f"the pin's model is {self.model!r}, expected a model's name: lower case letters")
        if self.version is not None and self.version < 1:
            raise SettingsInvalid(f"the pin's version is {self.version}, expected a number from 1, or none")
        if not re.fullmatch(r"" if self.version is None else r"[0-9a-f]{64}", self.sha256):
            expected = "nothing, since no version is pinned" if self.version is None else "64 hexadecimal digits"
            raise SettingsInvalid(f"the pin's sha256 is {self.sha256!r}, expected {expected}")
        # A quote at either end would be lost: Kustomize removes it.
        if not self.hold.isprintable() or self.hold != self.hold.strip(" \"'"):
            raise SettingsInvalid(
                f"the pin's hold is {self.hold!r}, expected a printable line without quotes around it"
            )


def parse(text: str) -> Pin:
    """Return what a pin file says; raises SettingsInvalid if it is not a valid one.

    It must hold nothing but the pin: a commit that changes this file alone is released without tests.
    """
    try:
        document = yaml.safe_load(text)
        literals = document["configMapGenerator"][0]["literals"]
        found = _FORM.fullmatch("\n".join(literals))
    except (ValueError, yaml.YAMLError, TypeError, KeyError, IndexError) as error:
        raise SettingsInvalid(f"{PIN} is not a valid pin: {error}. {_TO_DO}") from None
    if not found:
        raise SettingsInvalid(
            f"{PIN} is not a valid pin: it holds {literals!r}, expected model=, version=, sha256= and hold=. {_TO_DO}"
        )
    pin = Pin(found["model"], int(found["version"]) if found["version"] else None, found["sha256"], found["hold"])
    if document != yaml.safe_load(render(pin)):
        raise SettingsInvalid(f"{PIN} is not a valid pin: it holds more than the pin, or less. {_TO_DO}")
    return pin


def render(pin: Pin) -> str:
    """Return the whole pin file."""
    # JSON's quotes are YAML's, and any printable text is valid between them.
    hold = to_json(f"hold={pin.hold}", ensure_ascii=False) if pin.hold else "hold="
    return _FILE.format(model=pin.model, version=pin.version or "", sha256=pin.sha256, hold=hold)


def rollbacks(pins: Sequence[Pin]) -> dict[str, int]:
    """Return which versions of a model were rolled back, by their sha256, from its pins of a branch, the newest first.

    A pin is the result of a rollback if it came with a hold, or has a lower number than the pin before it. A version
    that was pinned again later, and then replaced by a newer one, does not count.
    """
    found: dict[str, int] = {}
    departed = set()
    for newer, older in pairwise(_changes(pins)):
        if older.version and older.sha256 not in departed:
            departed.add(older.sha256)
            if _went_back(newer, older):
                found[older.sha256] = older.version
    return found


def is_rollback(pins: Sequence[Pin]) -> bool:
    """Whether the newest of these pins is the result of a rollback, though its hold may be empty by now."""
    return any(_went_back(newer, older) for newer, older in pairwise(_changes(pins)[:2]))


def _changes(pins: Sequence[Pin]) -> list[Pin]:
    """The pins with which a version came, the newest first: not those that changed the hold alone."""
    return [[*same][-1] for _, same in groupby(pins, lambda pin: (pin.version, pin.sha256))]


def _went_back(newer: Pin, older: Pin) -> bool:
    return bool(newer.hold) or (newer.version or 0) < (older.version or 0)


def read_pin(checkout: Path) -> Pin:
    """Return the pin of a checkout; raises SettingsInvalid if it has none, or not a valid one."""
    try:
        return parse((checkout / PIN).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsInvalid(f"{checkout / PIN} is not a valid pin: {error}. {_TO_DO}") from None


def pin_at(clone: "Clone", commit: str) -> Pin:
    """Return the pin of a commit that was fetched; raises SettingsInvalid if it has none, or not a valid one."""
    return parse((clone.read(commit, PIN) or b"").decode(errors="replace"))


def history(clone: "Clone", branch: str) -> list[Pin]:
    """Return the pins that ``branch`` has had, newest first; neighbours that are equal are returned once.

    A commit that had no valid pin is left out, unless it is the last that changed the file: then SettingsInvalid is
    raised. A branch that does not exist has had none. Raises HostRefuses if the Git host cannot be asked.
    """
    tip = clone.tip(branch)
    if tip is None:
        return []
    clone.fetch(branch)
    pins = []
    for position, commit in enumerate(clone.log(tip, PIN)):
        try:
            pins.append(parse((clone.read(commit, PIN) or b"").decode("utf-8")))
        except (SettingsInvalid, UnicodeDecodeError):
            if not position:
                raise
    return [pin for pin, _ in groupby(pins)]
