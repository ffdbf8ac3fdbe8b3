"""What AWS does with the policies in docs/s3-policies, in front of an S3 server that does not know them.

Each identity has keys of its own, and each of its requests is passed on only if the identity's policy allows it: the
document that a user gives to AWS, with this store's bucket in it, is what decides. The server checks the signature.
"""

import http.client
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.s3_server import S3Server

POLICIES = Path(__file__).parents[1] / "docs" / "s3-policies"
IDENTITIES = ("data", "artifacts", "store")

Json = dict[str, Any]
Context = Mapping[str, str | None]


def policy(identity: str, bucket: str) -> Json:
    """The documented policy of an identity, for a bucket."""
    text = (POLICIES / f"{identity}.json").read_text("utf-8")
    found: Json = json.loads(re.sub(r"[A-Z]+_BUCKET", bucket, text))
    return found


def allows(document: Json, action: str, resource: str, context: Context) -> bool:
    """Whether a policy allows an action: nothing that it does not name, as AWS says."""
    return any(
        any(fnmatchcase(action, each) for each in _listed(statement["Action"]))
        and any(_matches(resource, each) for each in _listed(statement["Resource"]))
        and all(
            _holds(operator, context.get(key), _listed(value))
            for operator, keys in statement.get("Condition", {}).items()
            for key, value in keys.items()
        )
        for statement in document["Statement"]
        if {"Allow": True}[statement["Effect"]]
    )


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _matches(text: str, pattern: str) -> bool:
    """AWS knows * and ?, and they match a slash, too."""
    escaped = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(escaped, text, re.DOTALL) is not None


def _holds(operator: str, found: str | None, wanted: list[str]) -> bool:
    if operator == "Null":
        return wanted == [str(found is None).lower()]
    return {"StringLike": found is not None and any(_matches(found, each) for each in wanted)}[operator]


def asked(method: str, target: str, headers: Mapping[str, str], body: bytes) -> list[tuple[str, str, Context]]:
    """What a request asks for: actions, each on a resource, with what conditions may look at."""
    url = urlsplit(target)
    query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    bucket, _, key = unquote(url.path).lstrip("/").partition("/")
    bucket, place = f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/{key}"
    parts = {name for name in query if name in ("uploads", "uploadId", "partNumber")}
    others = {name for name in query if name not in parts} - {"list-type", "prefix", "delimiter", "max-keys"}
    others -= {"continuation-token", "start-after", "encoding-type", "fetch-owner", "x-id"}
    if not others and key and method in ("GET", "HEAD") and not parts:
        return [("s3:GetObject", place, {})]
    if not others and not key and method in ("GET", "HEAD"):
        return [("s3:ListBucket", bucket, {"s3:prefix": query.get("prefix")})]
    if not others and key and method in ("PUT", "POST"):
        # A part of an upload, and a copy, know no such header.
        with_header = not parts & {"uploads", "partNumber"} and "x-amz-copy-source" not in headers
        write = ("s3:PutObject", place, {"s3:if-none-match": headers.get("if-none-match") if with_header else None})
        if copied := headers.get("x-amz-copy-source"):
            return [("s3:GetObject", f"arn:aws:s3:::{unquote(copied).lstrip('/')}", {}), write]
        return [write]
    if not others and key and method == "DELETE":
        return [("s3:AbortMultipartUpload" if parts else "s3:DeleteObject", place, {})]
    if method == "POST" and others == {"delete"}:
        keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
        return [("s3:DeleteObject", f"{bucket}/{each}", {}) for each in keys]
    return [(f"not known: {method} {target}", place, {})]


@contextmanager
def identities(server: S3Server, bucket: str) -> Iterator[dict[str, dict[str, str]]]:
    """Run the gate while the context lasts; give the variables that an identity's Secret gives to a step."""
    policies = {server.keys[identity][0]: policy(identity, bucket) for identity in IDENTITIES}

    class Gate(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            key = re.search(r"Credential=([^/]+)/", headers.get("authorization", ""))
            document = policies[key[1]] if key else {"Statement": []}
            wanted = asked(self.command, self.path, headers, body)
            if not all(allows(document, *each) for each in wanted):
                self.say(403, {}, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
                return
            connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            found = connection.getresponse()
            content = found.read()
            connection.close()
            [(action, resource, _), *_] = wanted
            # AWS tells what is not there only to whom it lets list the bucket, whatever the prefix.
            if found.status == 404 and action == "s3:GetObject":
                whole = resource.partition("/")[0]
                if not allows(document, "s3:ListBucket", whole, {"s3:prefix": None}):
                    self.say(403, {}, b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")
                    return
            self.say(found.status, dict(found.getheaders()), content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def say(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers.items()}.get("content-length", str(len(body)))
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    gate = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
    gate.daemon_threads = True
    thread = threading.Thread(target=gate.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{gate.server_port}"
    try:
        yield {
            identity: {
                "AWS_S3_ENDPOINT": endpoint,
                "AWS_ACCESS_KEY_ID": server.keys[identity][0],
                "AWS_SECRET_ACCESS_KEY": server.keys[identity][1],
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            for identity in IDENTITIES
        }
    finally:
        gate.shutdown()
        thread.join()
        gate.server_close()
