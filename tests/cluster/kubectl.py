"""``kubectl`` as the tests call it."""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import node
from tests.cluster.build import run


@dataclass(frozen=True)
class Kubectl:
    """``kubectl`` bound to a cluster and a namespace; each call returns what it prints and raises what it complains."""

    program: str
    kubeconfig: str
    namespace: str = ""  # empty: what the kubeconfig or a document says

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        return run(*self.words(*arguments), input=stdin)

    def words(self, *arguments: str) -> tuple[str, ...]:
        space = (f"--namespace={self.namespace}",) if self.namespace else ()
        return self.program, f"--kubeconfig={self.kubeconfig}", *space, *arguments

    def within(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)

    def get(self, *arguments: str) -> Any:
        """An object, or a list of them, as Kubernetes' JSON."""
        return json.loads(self("get", *arguments, "--output=json"))

    def apply(self, *documents: str | dict[str, Any]) -> None:
        """Apply YAML texts and objects."""
        items = [
            item
            for document in documents
            for item in (yaml.safe_load_all(document) if isinstance(document, str) else [document])
        ]
        whole = {"apiVersion": "v1", "kind": "List", "items": items}
        self("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=json.dumps(whole))

    def finished(self, run: str, seconds: int = 120) -> Any:
        """Wait until a PipelineRun or TaskRun, ``kind/name``, has ended, well or not; returns it."""
        self("wait", "--for=jsonpath={.status.completionTime}", run, f"--timeout={seconds}s")
        return self.get(run)

    @contextmanager
    def forward(self, service: str, port: int) -> Iterator[str]:
        """The URL under which a port of ``service/name`` can be reached from here meanwhile."""
        if self.kubeconfig == str(node.KUBECONFIG):  # the node's Services are in reach, without a proxy that may end
            yield f"http://{self.get(service)['spec']['clusterIP']}:{port}"
            return
        with tempfile.NamedTemporaryFile() as log:
            command = self.words("port-forward", service, f":{port}")
            with subprocess.Popen(command, stdout=log, stderr=log) as process:

                def bound() -> re.Match[str] | None:
                    text = Path(log.name).read_text()
                    if process.poll() is not None:
                        raise RuntimeError(text)
                    return re.search(r"127\.0\.0\.1:\d+", text)

                try:
                    node.wait(f"forwarding of {service}", bound, 30)
                    found = bound()
                    assert found
                    yield f"http://{found[0]}"
                finally:
                    process.kill()
