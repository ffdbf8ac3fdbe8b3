"""What the Containerfile says of the training image, as far as it can be had without running it.

A cluster makes that image of three parts, none of which needs root: the base image, a folder of packages, and the files
of the commit. ``podman build`` makes the same of the same Containerfile.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from dockerfile_parse import DockerfileParser

from pipeline.core.errors import SettingsInvalid

STAGES = "dependencies", "training"
INSTALLS = "install_packages.py"
KNOWN = ("ENV", "USER", "WORKDIR", "COPY")
MODEL = "MODEL"  # the one argument of the last stage: the folder of the model


@dataclass(frozen=True)
class Containerfile:
    """The Containerfile of a commit, for the model in the folder ``model`` below pipeline/models.

    Raises SettingsInvalid if its last two stages are not as ``STAGES`` says.
    """

    content: bytes
    model: str

    def __post_init__(self) -> None:
        stages = self._stages()
        names = tuple(stages)[-2:]
        if names != STAGES:
            raise SettingsInvalid(f"The Containerfile's last stages are {names}, expected {STAGES}")
        packages, code = (stages[name] for name in STAGES)
        runs = [value for instruction, value in packages if instruction not in ("ARG", "COMMENT")]
        wrong = [value for value in runs if INSTALLS not in value]
        wrong += [f"{instruction} {value}" for instruction, value in code if not self._is_known(instruction, value)]
        wrong += [f"COPY {value}" for instruction, value in code if instruction == "COPY" and len(value.split()) != 2]
        if wrong or len(runs) != 1:
            first, last = STAGES
            raise SettingsInvalid(
                f"The Containerfile has {'; '.join(wrong) or 'no packages'} in the last stages. A cluster only adds "
                f"packages and files to the base image and runs no commands: {first} holds one RUN of {INSTALLS}, "
                f"{last} only {', '.join(KNOWN)} (with one source). Put everything else into the base image"
            )

    @property
    def base(self) -> str:
        """The image that both begin with."""
        return str(self._parsed().parent_images[-2])

    @property
    def copies(self) -> list[tuple[PurePosixPath, PurePosixPath]]:
        """What is copied from the commit, and where to."""
        named = (value.replace(f"${{{MODEL}}}", self.model).split() for value in self._last("COPY"))
        return [(PurePosixPath(source), PurePosixPath(target)) for source, target in named]

    def config(self, environment: Mapping[str, str]) -> dict[str, object]:
        """Return ``Env``, ``User`` and ``WorkingDir`` of the training image; ``environment`` is its base's."""
        whole = {**environment, **self._parsed(environment).envs}
        config: dict[str, object] = {"Env": [f"{name}={value}" for name, value in whole.items()]}
        for key, instruction in {"User": "USER", "WorkingDir": "WORKDIR"}.items():
            if found := self._last(instruction):
                config[key] = found[-1]
        return config

    @staticmethod
    def _is_known(instruction: str, value: str) -> bool:
        return instruction in (*KNOWN, "COMMENT") or (instruction == "ARG" and value.partition("=")[0] == MODEL)

    def _last(self, instruction: str) -> list[str]:
        return [value for found, value in self._stages()[STAGES[1]] if found == instruction]

    def _stages(self) -> dict[str, list[tuple[str, str]]]:
        stages: dict[str, list[tuple[str, str]]] = {}
        for line in self._parsed().structure:
            if line["instruction"] == "FROM":
                stages[line["value"].split()[-1]] = []
            elif stages:
                stages[list(stages)[-1]].append((line["instruction"], line["value"]))
        return stages

    def _parsed(self, environment: Mapping[str, str] | None = None) -> DockerfileParser:
        return DockerfileParser(fileobj=io.BytesIO(self.content), parent_env=dict(environment or {}))
