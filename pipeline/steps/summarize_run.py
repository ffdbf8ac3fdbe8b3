"""Summarize run: what became of it, written at its exit however it ended."""

import json
from pathlib import Path

from pipeline.log import log
from pipeline.report import summary_markdown
from pipeline.store import ModelStore, open_store


def summarize_run(
    summary: Path,
    *,
    state: str,
    model_store: str,
    model_name: str,
    run_id: str,
    run_name: str,
) -> int | None:
    """Write the run's summary as Markdown to ``summary``; return the number that it published, if any.

    ``state`` is Kubeflow's word for how the steps ended: COMPLETE or SUCCEEDED, FAILED, CANCELLED.
    """
    store = open_store(model_store, model_name)
    number = _published(store, run_id, run_name)
    text = summary_markdown(state, run_name, published=store.uri(number) if number else "")
    summary.write_text(text)
    log.info("%s", text)
    return number


def _published(store: ModelStore, run_id: str, run_name: str) -> int | None:
    for number in reversed(store.versions()):
        run = json.loads(store.read(number, "lineage.json"))["run"]
        if (run["id"], run["name"]) == (run_id, run_name):
            return number
    return None
