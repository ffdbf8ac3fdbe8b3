"""The operations of GitHub's API that we use, as its own description has them, in ``github-api.json``.

``python -m tests.scripts.git_hosts.github_api generated/api.github.com.json`` makes that file, from the description in
the npm package @octokit/openapi. GitHub's description allows any property in a body. Here it allows only those that it
describes: a wrong name is the commonest mistake.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

FILE = Path(__file__).with_name("github-api.json")
REPOSITORY = "/repos/{owner}/{repo}"
OPERATIONS = {
    REPOSITORY: ("get",),
    f"{REPOSITORY}/pulls": ("get", "post"),
    f"{REPOSITORY}/pulls/{{pull_number}}": ("get", "patch"),
    f"{REPOSITORY}/pulls/{{pull_number}}/merge": ("put",),
    f"{REPOSITORY}/pulls/{{pull_number}}/reviews": ("get",),
    f"{REPOSITORY}/issues/{{issue_number}}/comments": ("get", "post"),
    f"{REPOSITORY}/statuses/{{sha}}": ("post",),
    f"{REPOSITORY}/commits/{{ref}}/status": ("get",),
    f"{REPOSITORY}/commits/{{ref}}/check-runs": ("get",),
    f"{REPOSITORY}/git/refs": ("post",),
}
# Of the examples of answers, which are long, what a client of pull requests may read.
READ = {
    *("number", "html_url", "title", "body", "state", "merged_at", "merge_commit_sha", "merged_by", "login", "user"),
    *("head", "base", "ref", "sha", "repo", "full_name", "permissions", "push", "pull", "allow_squash_merge"),
    *("allow_merge_commit", "allow_rebase_merge", "total_count", "statuses", "check_runs", "status", "conclusion"),
    *("context", "merged", "message"),
}


def faults(method: str, path: str, query: dict[str, str], body: Any) -> list[str]:
    """What GitHub's description does not have of a request; nothing if it has it all."""
    found = _operation(method, path)
    if not found:
        return [f"{method} {path} is not described"]
    parameters = {each["name"]: each["schema"] for each in found["parameters"]}
    wrong = [
        f"{method} {path}: the query parameter {each} is not described" for each in query.keys() - parameters.keys()
    ]
    for name in query.keys() & parameters.keys():
        value: Any = int(query[name]) if parameters[name].get("type") == "integer" else query[name]
        wrong += [f"{method} {path}: {name}: {each.message}" for each in _errors(parameters[name], value)]
    if (body is None) != ("body" not in found):
        return [*wrong, f"{method} {path}: expected {'a' if 'body' in found else 'no'} body"]
    return wrong + [f"{method} {path}: {each.message}" for each in _errors(found.get("body", {}), body)]


def example(method: str, path: str) -> Any:
    """The answer in GitHub's example of an operation."""
    return _operation(method, path)["answer"]


def _operation(method: str, path: str) -> dict[str, Any]:
    """What is described of an operation; nothing if it is not."""
    for pattern, item in json.loads(FILE.read_text())["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path):
            return dict(item.get(method.lower(), {}))
    return {}


def _errors(schema: Any, value: Any) -> list[jsonschema.ValidationError]:
    return list(jsonschema.Draft202012Validator(schema).iter_errors(value))


def cut(description: dict[str, Any], licence: str) -> dict[str, Any]:
    """The part of a description that is about OPERATIONS."""

    def whole(node: Any) -> Any:
        """A part of the description with what it refers to, with closed objects, and without prose."""
        if isinstance(node, list):
            return [whole(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            found: Any = description
            for key in node["$ref"].removeprefix("#/").split("/"):
                found = found[key]
            return whole(found)
        made = {key: whole(value) for key, value in node.items() if key not in ("example", "examples")}
        if isinstance(made.get("description"), str):  # and not a property of that name
            del made["description"]
        if isinstance(made.get("properties"), dict):
            made.setdefault("additionalProperties", False)
        return made

    def read(node: Any) -> Any:
        if isinstance(node, list):
            return [read(each) for each in node]
        return {key: read(value) for key, value in node.items() if key in READ} if isinstance(node, dict) else node

    def answer(operation: dict[str, Any]) -> Any:
        code = next(each for each in operation["responses"] if each.startswith("2"))
        [named, *_] = operation["responses"][code]["content"]["application/json"]["examples"].values()
        return read(description["components"]["examples"][named["$ref"].rpartition("/")[2]]["value"])

    paths: dict[str, Any] = {}
    for path, methods in OPERATIONS.items():
        for method in methods:
            operation = description["paths"][path][method]
            parameters = [each for each in whole(operation.get("parameters", [])) if each["in"] == "query"]
            made: dict[str, Any] = {"parameters": parameters, "answer": answer(operation)}
            if "requestBody" in operation:
                made["body"] = whole(operation["requestBody"]["content"]["application/json"]["schema"])
            paths.setdefault(path, {})[method] = made
    return {"version": description["info"]["version"], "licence": licence, "paths": paths}


if __name__ == "__main__":
    source = Path(sys.argv[1])
    text = (source.parent.parent / "LICENSE").read_text().strip()
    FILE.write_text(json.dumps(cut(json.loads(source.read_text()), text), indent=1, ensure_ascii=False) + "\n")
