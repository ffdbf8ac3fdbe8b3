import json
from pathlib import Path

from pipeline.steps.summarize_run import summarize_run
from pipeline.store import open_store


def publish(root: Path, run_id: str) -> int:
    lineage = json.dumps({"run": {"id": run_id, "name": "prod-train-save-7"}}).encode()
    return open_store(str(root), "jukebox").publish(run_id, lambda _: {"model.onnx": b"o", "lineage.json": lineage})


def summarize(root: Path, summary: Path, *, state: str, run_id: str) -> int | None:
    return summarize_run(
        summary, state=state, model_store=str(root), model_name="jukebox", run_id=run_id, run_name="prod-train-save-7"
    )


def test_a_run_that_published_says_where(tmp_path: Path) -> None:
    publish(tmp_path, "another")
    publish(tmp_path, "ours")
    publish(tmp_path, "a later one")
    assert summarize(tmp_path, tmp_path / "summary.md", state="COMPLETE", run_id="ours") == 2
    text = (tmp_path / "summary.md").read_text()
    assert "prod-train-save-7" in text
    assert "jukebox/2" in text


def test_a_run_that_failed_says_that_nothing_was_published(tmp_path: Path) -> None:
    publish(tmp_path, "another")
    assert summarize(tmp_path, tmp_path / "summary.md", state="FAILED", run_id="ours") is None
    text = (tmp_path / "summary.md").read_text()
    assert "Failed" in text
    assert "Nothing was published" in text
