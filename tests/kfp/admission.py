"""What the pipeline server's webhook answers for Pipelines and PipelineVersions."""

import base64
import json
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format  # type: ignore[import-untyped]
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

Resource = dict[str, Any]

SCHEMA = "2.1.0"
INVALID = (
    "The pipeline spec is invalid: failed to parse the pipeline spec: InvalidInputError: {}: pipeline spec is invalid"
)


def refusal(version: Resource, before: Resource | None, pipelines: Iterable[Resource]) -> str:
    """Why the PipelineVersion is refused, or nothing; ``before`` is what an update changes."""
    spec = version.get("spec", {})
    if before:
        changeable = ("displayName", "tags")
        fixed = [
            {key: value for key, value in each.items() if key not in changeable} for each in (spec, before["spec"])
        ]
        if fixed[0] != fixed[1]:
            return "Pipeline spec is immutable; only mutable fields (display_name, tags) can be updated"
        return ""
    name, namespace = spec.get("pipelineName", ""), version["metadata"].get("namespace", "")
    if not name:
        return f"Failed to get the Pipeline {namespace}/: resource name may not be empty"
    if _pipeline(name, pipelines) is None:
        return "The spec.pipelineName doesn't map to an existing Pipeline object"
    return _spec_refusal(spec.get("pipelineSpec"))


def _spec_refusal(spec: object) -> str:
    if isinstance(spec, str):
        return INVALID.format(
            "unable to decode yaml document: yaml: unmarshal errors:\n"
            f"  line 1: cannot unmarshal !!str `{spec}` into map[string]interface {{}}"
        )
    try:
        parsed = json_format.ParseDict(spec or {}, PipelineSpec())
    except json_format.ParseError:
        parsed = None
    if not isinstance(spec, dict) or parsed is None or not parsed.HasField("root") or not parsed.pipeline_info.name:
        return INVALID.format("no pipeline spec is provided")
    if parsed.schema_version != SCHEMA:
        return INVALID.format(
            f"KFP only supports schema version {SCHEMA}, but the pipeline spec has version {parsed.schema_version}"
        )
    if len(parsed.pipeline_info.name) > 128:
        return "Invalid input error: pipeline's name must contain no more than 128 characters"
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", parsed.pipeline_info.name):
        return (
            "Invalid input error: pipeline's name must contain only lowercase alphanumeric characters or '-' "
            "and must start with alphanumeric characters"
        )
    return ""


def admitted(version: Resource, pipelines: Iterable[Resource]) -> Resource:
    """The metadata that a new PipelineVersion gets."""
    pipeline = _pipeline(version["spec"]["pipelineName"], pipelines)
    assert pipeline
    name, uid = pipeline["metadata"]["name"], pipeline["metadata"]["uid"]
    metadata = version["metadata"]
    labels = {"pipelines.kubeflow.org/pipeline": name[:63], "pipelines.kubeflow.org/pipeline-id": uid}
    owner = {
        "apiVersion": "pipelines.kubeflow.org/v2beta1",
        "kind": "Pipeline",
        "name": name,
        "uid": uid,
        "blockOwnerDeletion": True,
    }
    return {**metadata, "labels": {**metadata.get("labels", {}), **labels}, "ownerReferences": [owner]}


def review(path: str, request: Resource, pipelines: Iterable[Resource]) -> Resource:
    """Answer the AdmissionReview that the cluster's API sends to ``path``: it validates, or it mutates."""
    asked = request["request"]
    version, pipelines = asked["object"], list(pipelines)
    answer: Resource = {"uid": asked["uid"], "allowed": True}
    if asked["kind"]["kind"] == "PipelineVersion":
        if path.endswith("/mutate-pipelineversion"):
            # What will be refused is not touched.
            if asked["operation"] == "CREATE" and not refusal(version, None, pipelines):
                patch = [{"op": "add", "path": "/metadata", "value": admitted(version, pipelines)}]
                answer |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
        elif reason := refusal(version, asked.get("oldObject"), pipelines):
            status = {"status": "Failure", "message": reason, "reason": "BadRequest", "code": 400}
            answer |= {"allowed": False, "status": status}
    return {"apiVersion": request["apiVersion"], "kind": "AdmissionReview", "response": answer}


def _pipeline(name: str, pipelines: Iterable[Resource]) -> Resource | None:
    return next((each for each in pipelines if each["metadata"]["name"] == name), None)
