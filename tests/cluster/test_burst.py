"""Many pushes at once, and parts of Tekton killed meanwhile: each commit becomes one run, with what is sent again.

The numbers are those of a soak; a tenth of them is sent otherwise.
"""

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts.replay import Facts
from tests.cluster import node
from tests.cluster.listener import Listener


def pushes(listener: Listener, count: int) -> dict[str, Facts]:
    """Pushes of as many commits, by the names of their runs."""
    return {f"push-{facts.commit[:12]}": facts for facts in (listener.facts() for _ in range(count))}


def commits(listener: Listener) -> Counter[str]:
    """How many runs each commit has."""
    lines = listener.kubectl("get", "pipelineruns", "--no-headers", "--label-columns=jukebox.github.io/commit")
    return Counter(line.split()[-1] for line in lines.splitlines())


@pytest.fixture(autouse=True)
def _no_runs(listener: Listener) -> None:
    """Every test starts without runs: long lists are slow."""
    listener.forget()


def test_pushes_at_once_become_one_run_each(listener: Listener, share: float) -> None:
    burst = pushes(listener, round(1000 * share))
    with ThreadPoolExecutor(4) as pool:  # redeliveries of what is still on its way
        again = pool.map(listener.offer, list(burst.values())[::3])
        became = listener.deliver(burst)
        assert any(again)
    print(f"{len(burst)} pushes at once: {dict(became)}")
    assert commits(listener) == Counter(facts.commit for facts in burst.values())


@pytest.mark.parametrize("victim", ["listener", "interceptors", "controller", "API server"])
def test_what_is_killed_meanwhile_loses_nothing_that_is_sent_again(
    listener: Listener, share: float, victim: str
) -> None:
    own = listener.kubectl.kubeconfig == str(node.KUBECONFIG)
    if not own and victim in ("listener", "API server"):
        pytest.skip(
            "KUBECONFIG names another cluster: its API server is not ours, and a forwarded port ends with its pod"
        )

    def kill() -> None:
        if victim == "API server":
            pid = node.processes()["kube-apiserver"]
            os.kill(pid, signal.SIGKILL)
            # Until it has wholly ended it keeps its port, and one that is started meanwhile dies of that.
            node.wait("end of the API server", lambda: not Path(f"/proc/{pid}").exists())
            node.up()
            return
        labels = {
            "listener": "eventlistener=jukebox",
            "interceptors": "app.kubernetes.io/part-of=tekton-triggers,app.kubernetes.io/component=interceptors",
            "controller": "app.kubernetes.io/part-of=tekton-pipelines,app.kubernetes.io/component=controller",
        }
        space = f"--namespace={listener.kubectl.namespace}" if victim == "listener" else "--all-namespaces"
        found = listener.kubectl.within("").get("pods", space, f"--selector={labels[victim]}")["items"]
        assert found
        for one in found:
            name, there = one["metadata"]["name"], listener.kubectl.within(one["metadata"]["namespace"])
            there("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")

    sent = pushes(listener, round(500 * share))
    with ThreadPoolExecutor(1) as pool:
        delivered = pool.submit(listener.deliver, sent)
        listener.until(lambda names: len(names) > len(sent) // 5)
        kill()
        became = delivered.result()
    print(f"{len(sent)} pushes, {victim} killed meanwhile: {dict(became)}")
    controls = listener.control()
    found = commits(listener)
    assert len(found) == len(sent) + len(controls)
    assert set(found.values()) == {1}
    assert {facts.commit for facts in sent.values()} < set(found)
