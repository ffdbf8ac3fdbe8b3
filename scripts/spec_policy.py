"""The policy for compiled pipelines: pushed code writes the pipeline, product code checks it.

Fields that are not listed here are refused, including those of a later Kubeflow. The command of a step's container is
not restricted, because its image is built from pushed code as well. Its node, mounts, Secrets and resources are.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from kubernetes.utils.quantity import parse_quantity

from pipeline.checkout import DIRTY, page
from pipeline.core.documents import to_json
from pipeline.core.errors import SettingsInvalid, SpecRefused
from pipeline.core.trusted_ca import CONFIG_MAP, FILE
from pipeline.prod_train_save_pipeline import MINUTE, S3_KEYS
from pipeline.settings import Settings
from scripts.clients.kubernetes_api import PREFIX, Resource
from scripts.clients.registry import repository_of

API_VERSION = "pipelines.kubeflow.org/v2beta1"
CLAIM = "model_storage_pvc"  # the parameter that names the claim of the model store
# Each is a parameter of a run and a setting.
PLACES = ("data", "model_store", "model_name", "cluster_domain", CLAIM)
LONGEST_STEP = 24 * 60 * MINUTE  # seconds
MOST_RETRIES = 5
DEEPEST = 50  # levels of a document; the product's own have 20
MOST_LINES = 20
LONGEST_SHOWN = 100  # characters of a value
# Argo Workflows substitutes double braces twice. The second pass reads the output of the first, inside a pod's
# specification, so a value could close its string and add fields. Those that begin with a $ are Kubeflow's own.
TEMPLATE = re.compile(r"{{(?!\$)")

Rule = Callable[[Any, str], Iterator[str]]


def judge(pipeline: Resource, version: Resource, settings: Settings, image: str = "") -> None:
    """Raise SpecRefused, which names every field that is not allowed, if the two resources hold any.

    ``image`` is the one that the steps must run, by digest; if it is empty, any of the settings' repository.
    """
    spec = version.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    refuse(chain(_well_formed(pipeline, "Pipeline"), _well_formed(version, "PipelineVersion")))
    pipeline_spec, platform_spec = spec.get("pipelineSpec"), spec.get("platformSpec")
    version_resource = _version_resource(version_name(settings.pipeline, pipeline_spec, platform_spec), settings, image)
    refuse(
        chain(
            _pipeline_resource(settings)(pipeline, "Pipeline"),
            version_resource(version, "PipelineVersion"),
            _in_spec(pipeline_spec, platform_spec, settings, image),
        )
    )


def judge_spec(pipeline_spec: Any, platform_spec: Any, settings: Settings) -> None:
    """Raise SpecRefused, which names every field that is not allowed, if the two parts of a version's spec hold any."""
    refuse(chain(_well_formed(pipeline_spec, "pipelineSpec"), _well_formed(platform_spec, "platformSpec")))
    refuse(_in_spec(pipeline_spec, platform_spec, settings))


def refuse(problems: Iterable[str]) -> None:
    """Raise SpecRefused with the first problems, if there are any."""
    found = [*islice(problems, MOST_LINES + 1)]
    if found:
        more = ["…"] if len(found) > MOST_LINES else []
        lines = "\n".join(f"  {problem}" for problem in [*found[:MOST_LINES], *more])
        raise SpecRefused(
            f"The compiled pipeline contains fields or values that are not allowed, so it is refused:\n{lines}\n"
            "Correct the pipeline. If the settings have changed, run `jukebox bootstrap`, which applies them."
        )


def labels(settings: Settings) -> dict[str, str]:
    """Return the labels of Pipeline and PipelineVersion."""
    return {
        "app.kubernetes.io/name": settings.pipeline,
        "app.kubernetes.io/component": "pipeline",
        "app.kubernetes.io/part-of": "jukebox",
    }


def version_name(pipeline: str, pipeline_spec: Any, platform_spec: Any) -> str:
    """Return the name of the pipeline's version with this spec: it ends in the first 12 hex digits of its sha256.

    The digest is that of the canonical JSON of pipelineSpec and platformSpec. Raises NotFinite.
    """
    spec = {"pipelineSpec": pipeline_spec, "platformSpec": platform_spec}
    return f"{pipeline}-{hashlib.sha256(to_json(spec, sort_keys=True).encode()).hexdigest()[:12]}"


def allowed_secrets(settings: Settings) -> tuple[str, ...]:
    """Return the names of the Secrets whose keys for S3 a step may get."""
    return settings.data_secret, settings.store_secret


# Rules: each yields what is wrong with a value at a path


def _fields(required: str = "", /, **rules: Rule) -> Rule:
    """These fields and no others; ``required`` lists the required ones, separated by spaces."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{path} is {_shown(value)}, expected an object with the fields {', '.join(rules)}"
            return
        for name in value:
            if name in rules:
                yield from rules[name](value[name], _at(path, name))
            else:
                yield f"{_at(path, name)} is {_shown(value[name])}, expected only the fields {', '.join(rules)}"
        for name in required.split():
            if name not in value:
                yield f"{_at(path, name)} is missing, but required"

    return check


def _map(rule: Rule) -> Rule:
    """Names with values of this rule."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{path} is {_shown(value)}, expected an object"
            return
        for name, inner in value.items():
            yield from rule(inner, _at(path, name))

    return check


def _list(rule: Rule) -> Rule:
    """A list of values of this rule."""

    def check(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{path} is {_shown(value)}, expected a list"
            return
        for number, inner in enumerate(value):
            yield from rule(inner, f"{path}[{number}]")

    return check


def _if(allowed: Callable[[Any], bool], expected: str) -> Rule:
    def check(value: Any, path: str) -> Iterator[str]:
        if not allowed(value):
            yield f"{path} is {_shown(value)}, expected {expected}"

    return check


def _exactly(*allowed: Any) -> Rule:
    # In Python, 1 is True.
    same = {(type(each), each) for each in allowed}
    return _if(
        lambda value: isinstance(value, str | bool | int) and (type(value), value) in same,
        " or ".join(repr(each) for each in sorted(allowed)),
    )


def _same(value: str | Mapping[str, str]) -> Rule:
    """A text, or names with texts, and no other."""
    if isinstance(value, str):
        return _exactly(value)
    return _fields(" ".join(value), **{name: _exactly(each) for name, each in value.items()})


def _matching(pattern: str, expected: str) -> Rule:
    return _if(lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)), expected)


def _number(most: float) -> Rule:
    """A number above 0, to ``most``, or a text of one: whole numbers of 64 bits are text in the JSON of Kubeflow."""

    def allowed(value: Any) -> bool:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
            value = int(value)
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= most

    return _if(allowed, f"a positive number, at most {most}")


def _quantity(quota: str) -> Rule:
    """A Kubernetes quantity within a quota of the settings."""
    most = parse_quantity(quota)

    def allowed(value: Any) -> bool:
        fits = isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?(m|[KMGTPE]i|[kMGTPE])?", value)
        return bool(fits) and 0 < parse_quantity(value) <= most

    return _if(allowed, f"a number within the quota of the settings, {quota}")


def _anything(_value: Any, _path: str) -> Iterator[str]:
    yield from ()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


_text = _if(lambda value: isinstance(value, str), "text")
_flag = _exactly(True, False)
_pause = _matching(r"[0-9]{1,6}s", "seconds such as 15s, with at most six digits")


def _at(path: str, name: object) -> str:
    """The path of a field; a name that would be ambiguous is quoted."""
    plain = isinstance(name, str) and re.fullmatch(r"[\w/.-]{1,100}", name, re.ASCII)
    return f"{path}.{name}" if plain else f"{path}[{_shown(name)}]"


def _well_formed(value: Any, path: str, depth: int = 0) -> Iterator[str]:
    """The problems of a document that do not depend on its place."""
    if depth > DEEPEST:
        yield f"{path} is nested too deeply, expected at most {DEEPEST} levels"
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            place = _at(path, name) if isinstance(value, dict) else f"{path}[{name}]"
            if isinstance(value, dict):
                yield from _well_formed(name, f"the name {_shown(name)} in {path}", DEEPEST)
            yield from _well_formed(inner, place, depth + 1)
    elif isinstance(value, str):
        if found := TEMPLATE.search(value):
            begin = value[found.start() :]
            yield (
                f"{path} contains {_shown(begin)}, which Argo Workflows would substitute; two braces are allowed only "
                "before a $, as in Kubeflow's {{$}}: put a space between them"
            )
    elif isinstance(value, int | float):
        if not -(2**63) <= value < 2**63:  # Python writes out no number of any length
            yield f"{path} is a number that is too large, expected at most 64 bits"
    elif value is not None:
        yield f"{path} is a {type(value).__name__}, expected a JSON value: text, a number, true, false or null"


# The two resources


def _metadata(name: str, settings: Settings, **more: Rule) -> Rule:
    rules = _fields(**{label: _exactly(value) for label, value in labels(settings).items()})
    return _fields("name", name=_exactly(name), labels=rules, **more)


def _pipeline_resource(settings: Settings) -> Rule:
    return _fields(
        "apiVersion kind metadata",
        apiVersion=_exactly(API_VERSION),
        kind=_exactly("Pipeline"),
        metadata=_metadata(settings.pipeline, settings),
        spec=_fields(displayName=_exactly(settings.pipeline), description=_text),
    )


def _version_resource(name: str, settings: Settings, image: str) -> Rule:
    commit = r"[0-9a-f]{40}([0-9a-f]{24})?"
    annotations = {
        "commit": _matching(rf"{commit}({DIRTY})?", "the hash of a commit"),
        "image": _image(settings, image),
        "built-by": _matching(r"[\w .@-]{1,253}", "a name"),
    }
    address = f"{page(settings.repository)}/commit/"
    return _fields(
        "apiVersion kind metadata spec",
        apiVersion=_exactly(API_VERSION),
        kind=_exactly("PipelineVersion"),
        metadata=_metadata(
            name, settings, annotations=_fields(**{f"{PREFIX}/{key}": rule for key, rule in annotations.items()})
        ),
        spec=_fields(
            "pipelineName pipelineSpec platformSpec",
            pipelineName=_exactly(settings.pipeline),
            displayName=_exactly(name),
            description=_text,
            codeSourceURL=_matching(re.escape(address) + commit, f"{address}HASH"),
            # Judged by themselves.
            pipelineSpec=_anything,
            platformSpec=_anything,
        ),
    )


def _image(settings: Settings, image: str = "") -> Rule:
    repository = repository_of(settings.image)
    pattern, expected = rf"{re.escape(repository)}@sha256:[0-9a-f]{{64}}", f"{repository}@sha256:DIGEST"
    if not image:
        return _matching(pattern, expected)
    if not re.fullmatch(pattern, image):
        raise SettingsInvalid(f"--image is {image}, expected {expected}, as the settings name the image")
    return _exactly(image)


# The spec


def _in_spec(pipeline_spec: Any, platform_spec: Any, settings: Settings, image: str = "") -> Iterator[str]:
    problems = [
        *islice(_pipeline_spec(settings, image)(pipeline_spec, "pipelineSpec"), MOST_LINES + 1),
        *islice(_platform_spec(settings)(platform_spec, "platformSpec"), MOST_LINES + 1),
    ]
    # What is between places can be asked of what has the right form.
    yield from problems or _across(pipeline_spec, platform_spec)


def _pipeline_spec(settings: Settings, image: str) -> Rule:
    parameter = {
        "parameterType": _exactly(
            "STRING", "NUMBER_INTEGER", "NUMBER_DOUBLE", "BOOLEAN", "LIST", "STRUCT", "TASK_FINAL_STATUS"
        ),
        "isOptional": _flag,
        "description": _text,
        "literals": _list(_anything),
    }
    kind = _fields(schemaTitle=_text, schemaVersion=_text)
    artifact = _fields(artifactType=kind, isArtifactList=_flag, isOptional=_flag, description=_text)
    artifacts = _map(artifact)
    any_parameters = _map(_fields(**parameter, defaultValue=_anything))
    root_inputs = _fields(artifacts=artifacts, parameters=_root_parameters(parameter, settings))
    inputs = outputs = _fields(artifacts=artifacts, parameters=any_parameters)
    executor = _fields("container", container=_container(settings, image))
    return _fields(
        "pipelineInfo deploymentSpec root",
        pipelineInfo=_fields("name", name=_exactly(settings.pipeline), displayName=_text, description=_text),
        sdkVersion=_text,
        schemaVersion=_text,
        deploymentSpec=_fields("executors", executors=_map(executor)),
        components=_map(
            _fields(inputDefinitions=inputs, outputDefinitions=outputs, executorLabel=_text, dag=_fields(**_GRAPH))
        ),
        root=_fields("dag", inputDefinitions=root_inputs, outputDefinitions=outputs, dag=_fields(**_GRAPH)),
    )


def _root_parameters(parameter: Mapping[str, Rule], settings: Settings) -> Rule:
    """The parameters of a run; those that are settings as well must have the settings' values."""
    default = {name: _same(getattr(settings, name)) for name in PLACES}

    def check(value: Any, path: str) -> Iterator[str]:
        yield from _map(_anything)(value, path)
        for name, inner in value.items() if isinstance(value, dict) else ():
            required = "defaultValue" if name in default else ""
            rule = _fields(required, **parameter, defaultValue=default.get(name, _anything))
            yield from rule(inner, _at(path, name))

    return check


def _container(settings: Settings, image: str) -> Rule:
    cpu, memory = _quantity(settings.quota_cpu), _quantity(settings.quota_memory)
    resources = {
        "resourceCpuLimit": cpu,
        "resourceCpuRequest": cpu,
        "resourceMemoryLimit": memory,
        "resourceMemoryRequest": memory,
        # The same for servers that do not know those, in cores and in gigabytes.
        **dict.fromkeys(("cpuLimit", "cpuRequest"), _number(float(parse_quantity(settings.quota_cpu)))),
        **dict.fromkeys(("memoryLimit", "memoryRequest"), _number(float(parse_quantity(settings.quota_memory)) / 1e9)),
    }
    if gpus := int(settings.train_gpus):
        kind, count = _exactly(settings.gpu_resource), _number(gpus)
        resources["accelerator"] = _fields(type=kind, resourceType=kind, count=count, resourceCount=count)
    return _fields(
        "image resources",
        image=_image(settings, image),
        command=_list(_text),
        args=_list(_text),
        env=_list(_fields("name", name=_text, value=_text)),
        resources=_fields("resourceCpuLimit resourceMemoryLimit", **resources),
    )


def _platform_spec(settings: Settings) -> Rule:
    secret = allowed_secrets(settings)
    key = _exactly(*S3_KEYS)
    rules = {
        "activeDeadlineSeconds": _number(LONGEST_STEP),
        "imagePullPolicy": _exactly("IfNotPresent", "Always"),
        "securityContext": _fields("runAsNonRoot", runAsNonRoot=_exactly(True)),
        "secretAsEnv": _list(
            _fields(
                secretName=_exactly(*secret),
                secretNameParameter=_constant(*secret),
                keyToEnv=_list(_fields(secretKey=key, envVar=key)),
                optional=_flag,
            )
        ),
        "configMapAsVolume": _list(
            _fields(
                configMapName=_exactly(CONFIG_MAP),
                configMapNameParameter=_constant(CONFIG_MAP),
                mountPath=_exactly(str(FILE.parent)),
                optional=_flag,
            )
        ),
    }
    if settings.on_claim:
        named = {"componentInputParameter": _exactly(CLAIM)}
        by_name = _fields(**named, runtimeValue=_fields("constant", constant=_exactly(settings.model_storage_pvc)))
        rules["pvcMount"] = _list(
            _fields(
                **named,
                constant=_exactly(settings.model_storage_pvc),
                pvcNameParameter=by_name,
                mountPath=_exactly(settings.model_store),
            )
        )
    if settings.pull_secret:
        pull = _exactly(settings.pull_secret)
        by_name = _constant(settings.pull_secret)
        rules["imagePullSecret"] = _list(_fields(secretName=pull, secretNameParameter=by_name))
    if nodes := {settings.nodes, settings.train_nodes, settings.store_nodes} - {""}:
        labels = [dict([each.split("=", 1)]) for each in sorted(nodes)]
        rules["nodeSelector"] = _fields("labels", labels=_if(lambda found: found in labels, " or ".join(sorted(nodes))))
    if taints := {settings.taint, settings.train_taint, settings.store_taint} - {""}:
        rules["tolerations"] = _list(_fields("key operator", key=_exactly(*taints), operator=_exactly("Exists")))
    # Pod Security refuses what may run as root; OpenShift chooses the user itself.
    required = "activeDeadlineSeconds securityContext" if settings.platform == "kubeflow" else "activeDeadlineSeconds"
    deployment = _fields("executors", executors=_map(_fields(required, **rules)))
    return _fields(
        "platforms", platforms=_fields("kubernetes", kubernetes=_fields("deploymentSpec", deploymentSpec=deployment))
    )


def _constant(*names: str) -> Rule:
    return _fields("runtimeValue", runtimeValue=_fields("constant", constant=_exactly(*names)))


_SOURCE = _fields(
    componentInputParameter=_text,
    runtimeValue=_fields("constant", constant=_anything),
    taskOutputParameter=_fields(producerTask=_text, outputParameterKey=_text),
    taskFinalStatus=_fields(producerTask=_text),
    parameterExpressionSelector=_text,
)
_ARTIFACT_SOURCE = _fields(
    componentInputArtifact=_text, taskOutputArtifact=_fields(producerTask=_text, outputArtifactKey=_text)
)
_PARAMETER_OUTPUT = _fields(producerSubtask=_text, outputParameterKey=_text)
_TASK = _fields(
    "componentRef",
    taskInfo=_fields(name=_text),
    componentRef=_fields("name", name=_text),
    inputs=_fields(parameters=_map(_SOURCE), artifacts=_map(_ARTIFACT_SOURCE)),
    dependentTasks=_list(_text),
    # A custom cacheKey could be the digest by which another version finds its results.
    cachingOptions=_fields(enableCache=_flag),
    triggerPolicy=_fields(condition=_text, strategy=_text),
    parameterIterator=_fields(items=_fields(raw=_text, inputParameter=_text), itemInput=_text),
    artifactIterator=_fields(items=_fields(inputArtifact=_text), itemInput=_text),
    iteratorPolicy=_fields(parallelismLimit=_number(1000)),
    retryPolicy=_fields(
        "maxRetryCount",
        maxRetryCount=_number(MOST_RETRIES),
        backoffDuration=_pause,
        backoffFactor=_number(10),
        backoffMaxDuration=_pause,
    ),
)
_GRAPH = {
    "tasks": _map(_TASK),
    "outputs": _fields(
        artifacts=_map(_fields(artifactSelectors=_list(_fields(producerSubtask=_text, outputArtifactKey=_text)))),
        parameters=_map(
            _fields(
                valueFromParameter=_PARAMETER_OUTPUT,
                valueFromOneof=_fields(parameterSelectors=_list(_PARAMETER_OUTPUT)),
            )
        ),
    ),
}


def _across(pipeline_spec: Resource, platform_spec: Resource) -> Iterator[str]:
    """The problems between parts of a spec that are valid on their own.

    Each step needs its part of the platform, which holds its timeout. A parameter that names a claim is looked up in
    the graph that contains the step: the root's has the right default, another graph's or a loop's may have any value.
    """
    parts = platform_spec["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for name in pipeline_spec["deploymentSpec"]["executors"]:
        if name not in parts:
            path = "platformSpec.platforms.kubernetes.deploymentSpec.executors"
            yield f"{_at(path, name)} is missing, but required for the step's timeout"
    components = pipeline_spec.get("components", {})
    mounting = {
        name
        for name, component in components.items()
        for mount in parts.get(component.get("executorLabel"), {}).get("pvcMount", ())
        if {**mount, **mount.get("pvcNameParameter", {})}.get("componentInputParameter")
    }
    graphs = {"pipelineSpec.root": pipeline_spec["root"]}
    graphs |= {_at("pipelineSpec.components", name): component for name, component in components.items()}
    for place, graph in graphs.items():
        for task, details in graph.get("dag", {}).get("tasks", {}).items():
            once_in_root = graph is pipeline_spec["root"] and "parameterIterator" not in details
            if (name := details["componentRef"]["name"]) in mounting and not once_in_root:
                yield (
                    f"{_at(f'{place}.dag.tasks', task)}.componentRef.name is {name!r}, which mounts a claim that a "
                    "parameter names; this is allowed only in the root, outside of loops"
                )
