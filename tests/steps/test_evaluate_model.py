import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.champion import Champion
from pipeline.errors import HyperparametersInvalid, SettingsInvalid
from pipeline.examples import TEST_SPLITS, read_description, read_predictions, read_split, write_predictions
from pipeline.schema import FEATURE_NAMES
from pipeline.steps.evaluate_model import evaluate_model, interval
from tests.steps.conftest import Trained


def judge(examples: Path, predictions: Path, folder: Path, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    return evaluate_model(examples, predictions, folder / "evaluation.json", folder / "verdict.json", **options)


def champion_of(onnx_file: Path, labels: list[str]) -> Champion:
    return Champion(7, onnx_file.read_bytes(), labels, {})


def hand_made(folder: Path, counts: dict[str, list[list[int]]]) -> Path:
    """Splits with these counts of three countries, and any features."""
    labels = ["AR", "DE", "JP"]
    for split, rows in counts.items():
        table = np.array(rows, np.uint32).reshape(-1, 3)
        pl.DataFrame(np.zeros((len(table), 13), np.float32), schema=list(FEATURE_NAMES)).with_columns(
            pl.Series("counts", table, dtype=pl.Array(pl.UInt32, 3))
        ).write_parquet(folder / f"{split}.parquet")
    (folder / "preprocessing.json").write_text(json.dumps({"labels": labels}))
    return folder


def test_metrics_are_counted_over_rows(tmp_path: Path) -> None:
    examples = hand_made(
        tmp_path, {"train": [[6, 3, 0]], "test-seen": [[3, 1, 0], [0, 0, 4]], "test-unseen": [[0, 2, 0]]}
    )
    write_predictions(tmp_path / "p", "test-seen", np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], np.float32))
    write_predictions(tmp_path / "p", "test-unseen", np.array([[0.1, 0.8, 0.1]], np.float32))
    evaluation, _ = judge(examples, tmp_path / "p", tmp_path)
    seen, unseen, both = (evaluation["model"][part] for part in ("seen", "unseen", "all"))
    assert (seen["rows"], seen["songs"], unseen["rows"], both["rows"]) == (8, 2, 2, 10)
    assert seen["top1"] == 3 / 8
    assert unseen["top1"] == 1
    assert both["top5"] == 1, "there are but three countries"
    surprise = -(3 * np.log(0.5) + np.log(0.3) + 4 * np.log(0.1)) / 8
    assert seen["cross_entropy"] == pytest.approx(surprise, rel=1e-6)
    # Two songs in two bins: |0.5 - 3/4| with 4 rows and |0.6 - 0| with 4.
    assert seen["calibration_error"] == pytest.approx((4 * 0.25 + 4 * 0.6) / 8, rel=1e-6)
    assert evaluation["confusion"] == [[3, 0, 0], [1, 2, 0], [4, 0, 0]]
    recall = {c["country"]: (c["rows"], c["recall"], c["precision"]) for c in evaluation["countries"]}
    assert recall == {"AR": (3, 1, 3 / 8), "DE": (3, 2 / 3, 1), "JP": (4, 0, None)}
    # One row more for each country: 7, 4 and 1 of 12.
    assert evaluation["baseline"]["unseen"]["cross_entropy"] == pytest.approx(-np.log(4 / 12))


def test_the_interval_is_over_songs_and_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # Songs with many rows, all alike: over rows the interval would be ten times too narrow.
    rows = rng.integers(1, 200, 4000).astype(float)
    right = rows * (rng.random(4000) < 0.3)
    truth = right.sum() / rows.sum()
    held = 0
    for _ in range(400):
        drawn = rng.integers(0, 4000, 300)
        low, high = interval(right[drawn], rows[drawn])
        held += low <= truth <= high
    assert 0.91 < held / 400 < 0.98


def test_a_trained_model_passes_and_its_verdict_says_so(examples: Path, trained: Trained, tmp_path: Path) -> None:
    evaluation, verdict = judge(examples, trained.predictions, tmp_path)
    assert verdict["passed"]
    assert [check["name"] for check in verdict["checks"]] == ["gain-over-baseline", "top5-floor", "calibration-ceiling"]
    assert verdict["summary"].startswith("Good enough")
    gain = verdict["checks"][0]
    assert gain["value"] == pytest.approx(
        evaluation["baseline"]["unseen"]["cross_entropy"] - evaluation["model"]["unseen"]["cross_entropy"]
    )
    assert gain["interval"][0] < gain["value"] < gain["interval"][1]
    assert json.loads((tmp_path / "verdict.json").read_text()) == verdict


def uninformed(examples: Path, folder: Path) -> Path:
    """Predictions of a model that learnt nothing but noise."""
    rng = np.random.default_rng(2)
    for split in TEST_SPLITS.values():
        test = read_split(examples, split)
        write_predictions(
            folder, split, rng.dirichlet(np.ones(test.counts.shape[1]), len(test.vectors)).astype(np.float32)
        )
    return folder


def test_a_model_that_learnt_nothing_fails_each_check_that_it_breaks(examples: Path, tmp_path: Path) -> None:
    _, verdict = judge(examples, uninformed(examples, tmp_path / "noise"), tmp_path, thresholds={"top5_floor": 0.9})
    failed = [check["name"] for check in verdict["checks"] if not check["passed"]]
    assert not verdict["passed"]
    assert failed == ["gain-over-baseline", "top5-floor", "calibration-ceiling"]
    for name in failed:
        assert name in verdict["summary"]


def test_the_champion_is_judged_on_the_same_rows(
    examples: Path, trained: Trained, onnx_file: Path, tmp_path: Path
) -> None:
    labels = read_description(examples)["labels"]
    evaluation, verdict = judge(examples, trained.predictions, tmp_path, champion=champion_of(onnx_file, labels))
    assert evaluation["champion"]["version"] == 7
    for part in ("seen", "unseen", "all"):
        assert evaluation["champion"][part]["cross_entropy"] == pytest.approx(
            evaluation["model"][part]["cross_entropy"], abs=1e-5
        )
    check = next(c for c in verdict["checks"] if c["name"] == "no-worse-than-champion")
    assert check["value"] == pytest.approx(0, abs=1e-5)
    assert check["passed"]


def test_a_model_worse_than_the_champion_is_refused(examples: Path, onnx_file: Path, tmp_path: Path) -> None:
    labels = read_description(examples)["labels"]
    predictions = uninformed(examples, tmp_path / "noise")
    _, verdict = judge(examples, predictions, tmp_path, champion=champion_of(onnx_file, labels))
    assert "no-worse-than-champion" in [check["name"] for check in verdict["checks"] if not check["passed"]]
    assert "version 7" in verdict["summary"]


def test_a_champion_with_other_labels_is_compared_country_by_country(
    examples: Path, trained: Trained, onnx_file: Path, tmp_path: Path
) -> None:
    labels = read_description(examples)["labels"]
    reversed_labels, _ = judge(
        examples, trained.predictions, tmp_path / "a", champion=champion_of(onnx_file, labels[::-1])
    )
    assert reversed_labels["champion"]["all"]["top1"] < 0.5 * reversed_labels["model"]["all"]["top1"]
    unknown, _ = judge(
        examples, trained.predictions, tmp_path / "b", champion=champion_of(onnx_file, [*labels[:-1], "XX"])
    )
    # To the country that it does not know it gives no chance at all.
    tests = list(TEST_SPLITS.values())
    counts = np.concatenate([read_split(examples, split).counts for split in tests])
    ours = np.concatenate([read_predictions(trained.predictions, split) for split in tests])
    ours[:, -1] = 1e-7  # what a probability of 0 counts as
    surprise = -(counts * np.log(ours)).sum() / counts.sum()
    assert unknown["champion"]["all"]["cross_entropy"] == pytest.approx(surprise, rel=1e-4)


@pytest.mark.parametrize(("mode", "judged"), [("enforce", True), ("warn", True), ("off", False)])
def test_modes(examples: Path, tmp_path: Path, mode: str, judged: bool) -> None:
    _, verdict = judge(examples, uninformed(examples, tmp_path / "noise"), tmp_path, mode=mode)
    assert verdict["mode"] == mode
    assert verdict["passed"] is not judged
    assert bool(verdict["checks"]) is judged


def test_an_empty_split_is_null_and_the_other_decides(tmp_path: Path) -> None:
    examples = hand_made(tmp_path, {"train": [[6, 3, 1]], "test-seen": [[3, 1, 0]], "test-unseen": []})
    write_predictions(tmp_path / "p", "test-seen", np.array([[0.7, 0.2, 0.1]], np.float32))
    write_predictions(tmp_path / "p", "test-unseen", np.zeros((0, 3), np.float32))
    evaluation, verdict = judge(examples, tmp_path / "p", tmp_path)
    assert evaluation["model"]["unseen"] is None
    assert "seen songs" in verdict["checks"][0]["description"]


def test_an_unknown_threshold_or_mode_is_refused_by_name(examples: Path, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(HyperparametersInvalid, match=r"thresholds: accuracy: found 0.9, which is no known key"):
        judge(examples, trained.predictions, tmp_path, thresholds={"accuracy": 0.9})
    with pytest.raises(SettingsInvalid, match="gate_mode is 'maybe'; expected one of enforce, warn, off"):
        judge(examples, trained.predictions, tmp_path, mode="maybe")


def test_evaluation_needs_no_tensorflow(examples: Path, trained: Trained, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.steps.evaluate_model import evaluate_model; "
        "evaluate_model(*map(Path, sys.argv[1:])); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program, examples, trained.predictions, tmp_path / "e.json", tmp_path / "v.json"],
        check=True,
    )
