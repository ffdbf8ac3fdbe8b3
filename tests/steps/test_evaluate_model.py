import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from pipeline.core.champion import Champion
from pipeline.core.encoders import fit
from pipeline.core.errors import HyperparametersInvalid, SettingsInvalid
from pipeline.core.examples import Reader, read_description, write_predictions
from pipeline.core.kinds import Check, interval
from pipeline.core.report import evaluation_html, render_report
from pipeline.core.runtimes import Answer, onnxruntime_of
from pipeline.models.jukebox import MODEL
from pipeline.models.jukebox.tables import FEATURE_NAMES
from pipeline.steps.evaluate_model import evaluate_model
from tests import regression
from tests.models.jukebox.outputs import Trained
from tests.report_fixture import run
from tests.serving import model

pytest_plugins = ("tests.models.jukebox.fixtures",)

TESTS = ("test-seen", "test-unseen")
# What needs no champion: two of the kind, and one of the model.
CHECKS = ["gain-over-baseline", "calibration-ceiling", MODEL.checks[-1].name]


def judge(examples: Path, predictions: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    folder.mkdir(exist_ok=True)
    return evaluate_model(MODEL, examples, predictions, folder / "evaluation.json", folder / "verdict.json", **options)


def champion_of(onnx_file: Path, labels: list[str]) -> Champion:
    return Champion(7, onnx_file.read_bytes(), labels, {})


def hand_made(folder: Path, counts: dict[str, list[list[int]]]) -> Path:
    """Splits with these counts of three labels, and any features."""
    labels = ["AR", "DE", "JP"]
    for split, rows in counts.items():
        table = np.array(rows, np.uint32).reshape(-1, 3)
        pl.DataFrame(np.zeros((len(table), 13), np.float32), schema=list(FEATURE_NAMES)).with_columns(
            pl.Series("counts", table, dtype=pl.Array(pl.UInt32, 3))
        ).write_parquet(folder / f"{split}.parquet")
    description = {
        "labels": labels,
        "encoding": fit(MODEL.features, pl.scan_parquet(folder / "train.parquet")),
        "splits": {split: {} for split in counts},
    }
    (folder / "preprocessing.json").write_text(json.dumps(description))
    return folder


def test_metrics_are_counted_over_rows(tmp_path: Path) -> None:
    examples = hand_made(
        tmp_path, {"train": [[6, 3, 0]], "test-seen": [[3, 1, 0], [0, 0, 4]], "test-unseen": [[0, 2, 0]]}
    )
    write_predictions(tmp_path / "p", "test-seen", np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]], np.float32))
    write_predictions(tmp_path / "p", "test-unseen", np.array([[0.1, 0.8, 0.1]], np.float32))
    evaluation, _ = judge(examples, tmp_path / "p", tmp_path)
    seen, unseen, both = (evaluation["model"][part] for part in ("seen", "unseen", "all"))
    assert (seen["rows"], seen["examples"], unseen["rows"], both["rows"]) == (8, 2, 2, 10)
    assert seen["top1"] == 3 / 8
    assert unseen["top1"] == 1
    assert both[MODEL.metrics[0].name] == 1, "there are but three labels, and it takes the five likeliest"
    surprise = -(3 * np.log(0.5) + np.log(0.3) + 4 * np.log(0.1)) / 8
    assert seen["cross_entropy"] == pytest.approx(surprise, rel=1e-6)
    # Two examples in two bins: |0.5 - 3/4| with 4 rows and |0.6 - 0| with 4.
    assert seen["calibration_error"] == pytest.approx((4 * 0.25 + 4 * 0.6) / 8, rel=1e-6)
    assert evaluation["figures"]["confusion"] == [[3, 0, 0], [1, 2, 0], [4, 0, 0]]
    recall = {each["value"]: (each["rows"], each["examples"], each["top1"]) for each in evaluation["slices"]["label"]}
    assert recall == {"AR": (3, 1, 1), "DE": (3, 2, 2 / 3), "JP": (4, 1, 0)}
    # One row more for each label: 7, 4 and 1 of 12.
    assert evaluation["baseline"]["unseen"]["cross_entropy"] == pytest.approx(-np.log(4 / 12))


def test_the_interval_is_over_examples_and_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # Examples with many rows, all alike: over rows the interval would be ten times too narrow.
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
    assert [check["name"] for check in verdict["checks"]] == CHECKS
    assert [check["where"] for check in verdict["checks"]] == ["unseen", "", ""]
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
    reader = Reader(examples, MODEL)
    for split in reader.tests:
        count, labels = reader.read(split).target.shape
        write_predictions(folder, split, rng.dirichlet(np.ones(labels), count).astype(np.float32))
    return folder


def test_a_model_that_learnt_nothing_fails_each_check_that_it_breaks(examples: Path, tmp_path: Path) -> None:
    _, verdict = judge(examples, uninformed(examples, tmp_path / "noise"), tmp_path, thresholds={CHECKS[2]: 0.9})
    failed = [check["name"] for check in verdict["checks"] if not check["passed"]]
    assert not verdict["passed"]
    assert failed == CHECKS
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


def weights(labels: list[str]) -> list[float]:
    return [3.0 * index / len(labels) for index in range(len(labels))]


def champions_score(examples: Path, trained: Trained, folder: Path, features: Sequence[str]) -> float:
    """The cross entropy of a champion that sees the energy alone, among these features."""
    labels = read_description(examples)["labels"]
    champion = Champion(7, model(weights(labels), features), labels, {})
    evaluation, _ = judge(examples, trained.predictions, folder, champion=champion)
    score: float = evaluation["champion"]["all"]["cross_entropy"]
    return score


@pytest.mark.parametrize(
    "features",
    [FEATURE_NAMES[::-1], (*FEATURE_NAMES[5:], *FEATURE_NAMES[:5]), ("energy",), ("mode", "energy", "key")],
    ids=["reversed", "moved", "of which we have more", "in another order, of which we have more"],
)
def test_the_champion_gets_its_features_by_name(
    examples: Path, trained: Trained, tmp_path: Path, features: tuple[str, ...]
) -> None:
    expected = champions_score(examples, trained, tmp_path / "a", FEATURE_NAMES)
    assert champions_score(examples, trained, tmp_path / "b", features) == pytest.approx(expected, rel=1e-6)


def test_a_champion_that_takes_what_the_examples_lack_is_not_compared_and_the_other_checks_decide(
    examples: Path, trained: Trained, tmp_path: Path
) -> None:
    labels = read_description(examples)["labels"]
    champion = Champion(7, model(weights(labels), [*FEATURE_NAMES, "timbre"]), labels, {})
    evaluation, verdict = judge(examples, trained.predictions, tmp_path, champion=champion)
    reason = (
        "version 7 cannot be compared with it: it takes other columns than the examples have: missing columns: timbre"
    )
    assert evaluation["champion"] is None
    assert evaluation["not_compared"].startswith(reason)
    assert reason in verdict["summary"]
    assert verdict["passed"]
    assert verdict["champion"] == {"version": 7, "is_best": True, "compared": False}
    assert [check["name"] for check in verdict["checks"]] == CHECKS
    assert "It takes" not in evaluation_html(MODEL, evaluation, verdict)
    assert reason[1:] in evaluation_html(MODEL, evaluation, verdict)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["XX", "YY"], "of the labels, both know none, which is too few to compare"),
        (["DE", "XX"], "of the labels, both know DE, which is too few to compare"),
    ],
)
def test_a_champion_of_other_labels_is_not_compared(tmp_path: Path, labels: list[str], reason: str) -> None:
    examples = hand_made(tmp_path, {"train": [[6, 3, 1]], "test-seen": [[3, 1, 0]], "test-unseen": [[0, 2, 0]]})
    for split in TESTS:
        write_predictions(tmp_path / "p", split, np.array([[0.5, 0.3, 0.2]], np.float32))
    champion = Champion(7, model([1.0, 0.0]), labels, {})
    evaluation, verdict = judge(examples, tmp_path / "p", tmp_path, champion=champion)
    assert evaluation["not_compared"].endswith(reason)
    assert "no-worse-than-champion" not in [check["name"] for check in verdict["checks"]]


def two_of_three_labels(folder: Path, ours: dict[str, list[list[float]]]) -> tuple[Path, Path]:
    """Test rows of which 7 % are of a label that the champion does not know; rows of AR have energy, of DE none."""
    counts = {"train": [[6, 3, 1]], "test-seen": [[48, 2, 4], [2, 41, 3]], "test-unseen": [[38, 2, 2], [2, 40, 4]]}
    examples = hand_made(folder, counts)
    for split in TESTS:
        table = pl.read_parquet(examples / f"{split}.parquet")
        table.with_columns(pl.Series("energy", [3.0, -3.0], pl.Float32)).write_parquet(examples / f"{split}.parquet")
        write_predictions(folder / "p", split, np.array(ours[split], np.float32))
    return examples, folder / "p"


KNOWS_TWO = Champion(7, model([1.0, 0.0]), ["AR", "DE"], {})


def test_a_uniform_model_does_not_beat_one_that_is_right_but_does_not_know_a_label(tmp_path: Path) -> None:
    uniform = {split: [[1 / 3] * 3] * 2 for split in TESTS}
    evaluation, verdict = judge(*two_of_three_labels(tmp_path, uniform), tmp_path, champion=KNOWS_TWO)
    champion = evaluation["champion"]
    assert champion["all"]["top1"] > 0.94
    assert champion["all"]["rows"] == champion["model"]["all"]["rows"] == 175
    assert champion["rows_left_out"] == 13
    assert (champion["only_model"], champion["only_champion"]) == (["JP"], [])
    check = next(check for check in verdict["checks"] if check["name"] == "no-worse-than-champion")
    # Of two labels, the uniform model gives each a half.
    assert champion["model"]["all"]["cross_entropy"] == pytest.approx(np.log(2), rel=1e-5)
    assert check["value"] == pytest.approx(np.log(2) - champion["all"]["cross_entropy"], rel=1e-5)
    assert not check["passed"]
    assert "without 13 rows of labels that it does not know" in verdict["summary"]


def test_a_model_that_knows_a_label_more_and_the_rest_as_well_passes(tmp_path: Path) -> None:
    answers = {"AR": [0.9, 0.045, 0.055], "DE": [0.045, 0.9, 0.055]}
    better = {split: [answers["AR"], answers["DE"]] for split in TESTS}
    evaluation, verdict = judge(*two_of_three_labels(tmp_path, better), tmp_path, champion=KNOWS_TWO)
    check = next(check for check in verdict["checks"] if check["name"] == "no-worse-than-champion")
    assert check["passed"]
    assert abs(check["value"]) < 0.01
    assert evaluation["model"]["all"]["rows"] == 188


def test_a_champion_with_labels_that_are_gone_is_compared_on_what_is_left(
    examples: Path, trained: Trained, onnx_file: Path, tmp_path: Path
) -> None:
    labels = read_description(examples)["labels"]
    champion = Champion(7, model([1.0] * len(labels) + [50.0]), [*labels, "XX"], {})
    evaluation, _ = judge(examples, trained.predictions, tmp_path, champion=champion)
    assert evaluation["champion"]["only_champion"] == ["XX"]
    assert evaluation["champion"]["rows_left_out"] == 0
    # Wherever it would have said XX, it says nothing: the others are equally likely.
    assert evaluation["champion"]["all"]["cross_entropy"] == pytest.approx(np.log(len(labels)), rel=1e-4)
    other, _ = judge(examples, trained.predictions, tmp_path, champion=champion_of(onnx_file, labels[::-1]))
    assert other["champion"]["all"]["top1"] < 0.5 * other["model"]["all"]["top1"], "columns go by their labels"


def test_a_split_of_labels_that_the_champion_does_not_know_is_left_out(tmp_path: Path) -> None:
    ours = {split: [[0.5, 0.3, 0.2]] for split in TESTS}
    examples = hand_made(tmp_path, {"train": [[6, 3, 1]], "test-seen": [[3, 1, 0]], "test-unseen": [[0, 0, 5]]})
    for split, rows in ours.items():
        write_predictions(tmp_path / "p", split, np.array(rows, np.float32))
    evaluation, verdict = judge(examples, tmp_path / "p", tmp_path, champion=KNOWS_TWO)
    assert evaluation["champion"].get("unseen") is None
    assert evaluation["champion"]["seen"] == evaluation["champion"]["all"]
    assert "knows none of the labels" in render_report(
        MODEL, {"evaluation": evaluation, "verdict": verdict, "preprocessing": None}, run()
    )


def test_the_slices_in_which_the_examples_are_read_decide_nothing(
    examples: Path, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = read_description(examples)["labels"]
    # Some examples are of no label that both know: the slices of what is compared are uneven.
    champion = Champion(7, model([3.0, 1.0, -1.0, 0.0]), ["XX", *labels[:3]], {})
    whole = judge(examples, trained.predictions, tmp_path / "whole", champion=champion)
    assert 0 < whole[0]["champion"]["all"]["examples"] < whole[0]["model"]["all"]["examples"]
    asked = []

    def watched(content: bytes) -> Answer:
        answer = onnxruntime_of(content)

        def watch(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
            asked.append(len(vectors))
            return answer(vectors)

        return watch

    monkeypatch.setattr("pipeline.core.examples.SLICE", 7)
    monkeypatch.setattr("pipeline.steps.evaluate_model.onnxruntime_of", watched)
    assert judge(examples, trained.predictions, tmp_path / "slices", champion=champion) == whole
    assert max(asked) <= 7
    assert sum(asked) == whole[0]["champion"]["all"]["examples"]


def test_the_verdict_keeps_what_it_takes_to_judge_again(
    examples: Path, trained: Trained, onnx_file: Path, tmp_path: Path
) -> None:
    champion = champion_of(onnx_file, read_description(examples)["labels"])
    limits = {CHECKS[2]: 0.2}
    _, verdict = judge(
        examples,
        trained.predictions,
        tmp_path,
        champion=replace(champion, is_best=False),
        champion_version="7",
        mode="warn",
        thresholds=limits,
    )
    assert verdict["champion"] == {"version": 7, "is_best": False, "compared": True}
    assert (verdict["champion_version"], verdict["mode"], verdict["thresholds"][CHECKS[2]]) == ("7", "warn", 0.2)
    _, verdict = judge(examples, trained.predictions, tmp_path, champion_version="none")
    assert "it was not compared, because champion_version is none" in verdict["summary"]


@pytest.mark.parametrize(("mode", "judged"), [("enforce", True), ("warn", True), ("off", False)])
def test_in_no_mode_does_a_bad_model_pass(examples: Path, tmp_path: Path, mode: str, judged: bool) -> None:
    _, verdict = judge(examples, uninformed(examples, tmp_path / "noise"), tmp_path, mode=mode)
    assert verdict["mode"] == mode
    assert verdict["passed"] is False
    assert bool(verdict["checks"]) is judged


def test_an_empty_split_is_null_and_the_other_decides(tmp_path: Path) -> None:
    examples = hand_made(tmp_path, {"train": [[6, 3, 1]], "test-seen": [[3, 1, 0]], "test-unseen": []})
    write_predictions(tmp_path / "p", "test-seen", np.array([[0.7, 0.2, 0.1]], np.float32))
    write_predictions(tmp_path / "p", "test-unseen", np.zeros((0, 3), np.float32))
    evaluation, verdict = judge(examples, tmp_path / "p", tmp_path)
    assert evaluation["model"]["unseen"] is None
    assert verdict["checks"][0]["where"] == "", "the check asks for unseen, and takes all that there is"


def test_an_unknown_threshold_or_mode_is_refused_by_name(examples: Path, trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(
        HyperparametersInvalid,
        match=r"thresholds: accuracy: found 0.9, which is not a known check \(known: gain-over-baseline",
    ):
        judge(examples, trained.predictions, tmp_path, thresholds={"accuracy": 0.9})
    with pytest.raises(SettingsInvalid, match="gate_mode is 'maybe'; expected one of enforce, warn, off"):
        judge(examples, trained.predictions, tmp_path, mode="maybe")


def test_evaluation_needs_no_tensorflow(examples: Path, trained: Trained, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.models.jukebox import MODEL; "
        "from pipeline.steps.evaluate_model import evaluate_model; "
        "evaluate_model(MODEL, *map(Path, sys.argv[1:])); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program, examples, trained.predictions, tmp_path / "e.json", tmp_path / "v.json"],
        check=True,
    )


def of_one_split(folder: Path, counts: list[list[int]], answers: list[list[float]]) -> tuple[Path, Path]:
    """Test rows of one split, with their predictions."""
    examples = hand_made(folder, {"train": [[6, 3, 1]], "test-seen": counts, "test-unseen": []})
    write_predictions(folder / "p", "test-seen", np.array(answers, np.float32))
    write_predictions(folder / "p", "test-unseen", np.zeros((0, 3), np.float32))
    return examples, folder / "p"


@pytest.mark.parametrize(("min_rows", "worst", "passed"), [(10, "label JP", False), (11, "label AR", True)])
def test_a_model_may_be_refused_for_its_worst_slice_that_has_enough_rows(
    tmp_path: Path, min_rows: int, worst: str, passed: bool
) -> None:
    per_label = Check("top1-of-each-label", "top1", at_least=0.3, slice="label", min_rows=min_rows)
    strict = replace(MODEL, checks=[*MODEL.checks, per_label])
    examples, predictions = of_one_split(
        tmp_path, [[40, 0, 2], [0, 6, 8], [8, 8, 0]], [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.8, 0.1]]
    )
    _, verdict = evaluate_model(strict, examples, predictions, tmp_path / "e.json", tmp_path / "v.json")
    check = next(check for check in verdict["checks"] if check["name"] == "top1-of-each-label")
    assert (check["where"], check["passed"]) == (worst, passed)


@pytest.mark.parametrize(("times", "passed"), [(1, True), (100, False)])
def test_a_model_that_is_worse_by_chance_is_not_refused(tmp_path: Path, times: int, passed: bool) -> None:
    """The mean is worse by the same; of a few examples that may be chance."""
    answers = [[0.98, 0.01, 0.01], [0.05, 0.9, 0.05], [0.1, 0.45, 0.45]]
    examples, predictions = of_one_split(tmp_path, [[9, 1, 0], [1, 9, 0], [9, 1, 0]] * times, answers * times)
    table = pl.read_parquet(examples / "test-seen.parquet")
    table.with_columns(pl.Series("energy", [2.0, -2.0, 2.0] * times, pl.Float32)).write_parquet(
        examples / "test-seen.parquet"
    )
    _, verdict = judge(examples, predictions, tmp_path, champion=KNOWS_TWO)
    check = next(check for check in verdict["checks"] if check["name"] == "no-worse-than-champion")
    assert check["value"] > 0.2
    assert check["passed"] is passed


def test_a_regression_is_measured_on_each_of_its_slices(tmp_path: Path) -> None:
    evaluation = regression.documents(tmp_path)["evaluation"]
    reader = Reader(tmp_path / "examples", regression.MODEL)
    test = reader.read("test")
    error = np.abs((test.target * 1.1 - 1).astype(np.float32) - test.target)[:, 0]
    assert evaluation["labels"] == ["price"]
    assert evaluation["model"]["test"]["mae"] == pytest.approx(error.mean())
    assert evaluation["model"]["test"]["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    found = {each["value"]: (each["rows"], each["mae"]) for each in evaluation["slices"]["fuel"]}
    for fuel in ("diesel", "electric", "petrol", None):
        some = test.frame["fuel"].eq_missing(fuel).to_numpy()
        assert found[fuel or "none"] == (some.sum(), pytest.approx(error[some].mean()))
    assert sum(each["examples"] for each in evaluation["figures"]["residuals"]) == len(error)
