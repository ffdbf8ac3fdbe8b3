import json
from typing import Any

import pytest

from pipeline.core.candidate import LONGEST, candidate_of, line, parse
from pipeline.core.errors import CandidateInvalid
from tests.report_fixture import documents


@pytest.fixture
def lineage() -> dict[str, Any]:
    """Of a version that was compared with the champion 2."""
    found: dict[str, Any] = documents(labels=3)["lineage"]
    return found


def serving(lineage: dict[str, Any], version: int) -> dict[str, Any]:
    """The same, if production serves another version than the champion."""
    beside = {**lineage["beside"]["champion"], "version": version}
    shift = {"energy": {"psi": 0.4, "mean_difference": -0.1}, "mode": {"psi": 0.01, "mean_difference": None}}
    return {
        **lineage,
        "beside": {**lineage["beside"], "served": beside},
        "shift": {**lineage["shift"], "served": shift},
        "verdict": {**lineage["verdict"], "served": {"version": version, "compared": True}},
    }


def test_what_is_logged_is_read_again(lineage: dict[str, Any]) -> None:
    found = parse(f"step publish-model started\n{line(serving(lineage, 1))}\nstep publish-model succeeded\n")

    assert found
    assert (found.model, found.number, found.version) == ("jukebox", 3, "0.0.2")
    assert (found.passed, found.prod_flag) == (True, False)
    assert found.sha256 == lineage["sha256"]["model.onnx"]
    assert found.run["commit"] == lineage["run"]["commit"]
    rows = {name: table["rows"] for name, table in found.data["tables"].items()}
    assert rows == lineage["data"]["profile"]["rows"]
    assert [check["name"] for check in found.checks] == [check["name"] for check in lineage["verdict"]["checks"]]
    assert found.metrics["champion"]["version"] == 2
    assert found.metrics["served"]["version"] == 1
    assert found.metrics["served"]["metrics"].keys() == lineage["metrics"].keys()
    assert found.metrics["model"]["all"]["top1"] == pytest.approx(lineage["metrics"]["all"]["top1"], rel=1e-5)
    assert found.difference["served"] == {
        "version": 1,
        "metric": "cross_entropy",
        "value": -0.04,
        "interval": [-0.05, -0.03],
    }
    assert (found.shift_from, found.shift[0]) == (
        "served",
        {"column": "energy", "statistic": "psi", "value": 0.4, "severity": "warning"},
    )
    assert [entry["runtime"] for entry in found.parity] == ["ONNX Runtime", "OpenVINO"]


def test_if_production_serves_the_champion_both_are_the_same(lineage: dict[str, Any]) -> None:
    lineage["verdict"]["served"] = {"version": 2, "compared": True}
    found = candidate_of(lineage)
    assert found.metrics["served"] == found.metrics["champion"]
    assert found.difference["served"] == found.difference["champion"]
    assert found.shift_from == "champion"


def test_the_first_version_was_compared_with_none() -> None:
    found = parse(line(documents(labels=3, champion=None)["lineage"]))
    assert found
    assert found.metrics["champion"] is found.metrics["served"] is found.difference["served"] is None


def test_the_line_is_one_and_short_however_much_there_is_to_say(lineage: dict[str, Any]) -> None:
    lineage = serving(lineage, 1)
    lineage["shift"]["served"] = {f"column {n}": {"psi": 0.001 * n, "mean_difference": 1.0} for n in range(2000)}
    for splits in (lineage["metrics"], lineage["beside"]["served"], lineage["beside"]["baseline"]):
        splits |= {f"split {n}": splits["all"] for n in range(40)}
    lineage["verdict"]["summary"] = "ü\n" * 5000

    text = line(lineage)

    assert len(text) <= LONGEST
    assert text.isascii()
    assert "\n" not in text
    found = parse(text)
    assert found
    assert found.metrics["model"].keys() == {"all"}
    assert len(found.checks) == len(lineage["verdict"]["checks"])


def test_the_line_of_the_last_attempt_counts(lineage: dict[str, Any]) -> None:
    first = line(lineage)
    lineage["model"]["number"] = 4
    found = parse(f"{first}\n{line(lineage)}\n")
    assert found
    assert found.number == 4


def test_text_that_only_looks_like_it_is_not_taken_for_it(lineage: dict[str, Any]) -> None:
    forged = line(lineage).replace('"number":3', '"number":9')
    lineage["verdict"]["summary"] = f"Good.\n{forged}"
    log = f"2026-03-14 09:26:53,000 INFO {forged}\n{line(lineage)}\n  {forged}\ncandidates: {{}}\n"
    found = parse(log)
    assert found
    assert found.number == 3
    assert parse(f"2026-03-14 09:26:53,000 INFO {forged}\n") is None


def test_a_run_that_has_published_nothing_has_no_candidate() -> None:
    assert parse("") is None
    assert parse("step publish-model failed after 0.10 s, peak memory 99 MiB\n") is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("number", 0, "number: Input should be greater than or equal to 1"),
        ("number", True, "number: Input should be a valid integer"),
        ("model", "../other", "model: String should match"),
        ("sha256", "ab", "sha256: String should match"),
        ("passed", "yes", "passed: Input should be a valid boolean"),
        ("run", {}, "run.id: Field required"),
        ("checks", [{"name": "x"}], "checks.0.value: Field required"),
        ("summary", None, "summary: Input should be a valid string"),
    ],
)
def test_a_line_of_another_shape_is_an_error_that_says_where(
    lineage: dict[str, Any], field: str, value: Any, message: str
) -> None:
    whole = json.loads(line(lineage).removeprefix("candidate "))
    with pytest.raises(CandidateInvalid, match=message):
        parse(f"candidate {json.dumps({**whole, field: value})}")


@pytest.mark.parametrize("id_", ["a b", "a-->", "`x`"])
def test_what_goes_into_the_marker_of_a_pull_request_cannot_end_it(lineage: dict[str, Any], id_: str) -> None:
    lineage["run"]["id"] = id_
    with pytest.raises(CandidateInvalid, match=r"run\.id: String should match"):
        parse(line(lineage))


def test_a_line_that_was_cut_off_is_an_error_and_not_the_one_before(lineage: dict[str, Any]) -> None:
    whole = line(lineage)
    for damaged in (whole[:-100], 'candidate {"number": NaN}', "candidate {" + '"a":[' * 100_000):
        with pytest.raises(CandidateInvalid, match="damaged record of the version: it is not valid JSON"):
            parse(f"{whole}\n{damaged}\n")
