"""A client that asks the model server all the time, to see that no request is lost."""

import contextlib
import threading
import time
from collections.abc import Iterator

import requests

from tests.cluster.kserve import QUESTION
from tests.cluster.project import Project


@contextlib.contextmanager
def asking(project: Project) -> Iterator["Client"]:
    """Ask the project's model server during the block, of which no request may be lost."""
    with project.kubectl.forward("jukebox-predictor", 80) as url, Client(url) as client:
        yield client
    assert client.failures == []
    assert client.asked > 100


class Client:
    """Asks all the time, each time by a new connection, and keeps what went wrong."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/v2/models/jukebox/infer"
        self.asked = 0
        self.version = ""
        self.failures: list[str] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            self.asked += 1
            try:
                answer = requests.post(self.url, json=QUESTION, timeout=30)
                answer.raise_for_status()
                self.version = answer.json()["model_version"]
            except requests.RequestException as error:
                self.failures.append(f"{time.strftime('%H:%M:%S')} {error}")

    def __enter__(self) -> "Client":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
