"""The page about a run: what it says, that it is safe, and how it looks in a browser."""

import base64
import json
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import charts
from pipeline.core.report import (
    DOCUMENTS,
    Run,
    bars,
    evaluation_html,
    number,
    percent,
    render_report,
    seconds,
    summary_markdown,
)
from pipeline.models.jukebox import MODEL
from tests import regression
from tests.browser import CHROMIUM, MISSING, Browser, browser
from tests.report_fixture import FIRST, LAST, OWN, broken_data, documents, refused, run

REPOSITORY = Path(__file__).parents[2]
VOID = {"meta", "br"}
SVG_VOID = {"path", "rect", "circle", "use", "image"}


class Page(HTMLParser):
    """The text of each section (by id; "" is the head), and what a browser would load or link."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.tags.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.links.append(found["href"])
        self.loads += [found[key] for key in ("src", "href", "xlink:href", "action") if key in found and tag != "a"]
        assert not [key for key in found if key.startswith("on")], "a page runs no scripts"
        if tag == "section":
            self._section = found["id"]
            self.sections[self._section] = ""
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in {"style"}:
            self.sections[self._section] += data + " "
            if "tr" in self._open and self.rows and self.rows[-1]:
                self.rows[-1][-1] += data + " "

    def row(self, first: str) -> list[str]:
        """The cells of the first row whose first cell begins so."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        return next(row for row in rows if row and row[0].startswith(first))

    def text(self, section: str) -> str:
        return " ".join(self.sections[section].split())


def render_without_pictures(found: dict[str, Any], about: Run) -> str:
    """Drawing takes most of the time, and not every test looks at what is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "training_curves", lambda *_: [])
        for name in ("intervals", "reliability", "confusion"):
            patch.setattr(charts, name, lambda *_: "")
        return render_report(MODEL, found, about)


@cache
def whole() -> str:
    """The page of a run that went through."""
    return render_report(MODEL, documents(), run())


@cache
def cars() -> dict[str, Any]:
    """The documents of a run of another kind of model."""
    with TemporaryDirectory() as folder:
        return regression.documents(Path(folder))


@cache
def pages() -> dict[str, str]:
    """Pages that differ in what there is to show."""
    found = documents(labels=40)
    hostile_run, hostile_documents = hostile()
    failed = run(stopped_at="validate-data", error=f"DataInvalid: {LAST} has no column 'day'")
    return {
        "published": whole(),
        "refused": render_report(
            MODEL, refused(found), run(stopped_at="verify-model", error="GateRefused: not good enough")
        ),
        "broken data": render_report(MODEL, broken_data(found), failed),
        "nothing": render_report(MODEL, {}, run(stopped_at="fetch-data", error="DataUnavailable: no such file")),
        "hostile": render_report(MODEL, hostile_documents, hostile_run),
        "evaluation": evaluation_html(MODEL, found["evaluation"], found["verdict"]),
        "regression": render_report(regression.MODEL, cars(), run()),
    }


SCRIPT = "<script>alert('no')</script>"
UNICODE = "日本 \u202eקדימה 🎵 & \"quoted\" 'and' {{ 7 * 7 }}"
ENDLESS = "x" * 3000


def hostile() -> tuple[Run, dict[str, Any]]:
    """A run whose texts want to be markup, or to burst the page."""
    found = documents(labels=12)
    evaluation = found["evaluation"]
    labels = [SCRIPT, ENDLESS, UNICODE, r"$\no$", *evaluation["labels"][4:]]
    evaluation["labels"] = labels
    for scores, label in zip(evaluation["slices"]["label"], labels, strict=True):
        scores["value"] = label
    found["validation"]["checks"].append(
        {
            "name": f"check {SCRIPT}", "severity": "error", "passed": False, "count": 1,
            "message": f"{UNICODE} {ENDLESS}",
            "examples": [{"name": SCRIPT, "text": UNICODE, ENDLESS: None}],
        }
    )  # fmt: skip
    found["verdict"]["checks"][0] |= {"name": ENDLESS, "description": SCRIPT}
    found["verdict"]["summary"] = f"{SCRIPT} {ENDLESS}"
    found["parity"]["runtimes"][0]["runtime"] = SCRIPT
    found["parity"]["tolerances"]["reason"] = ENDLESS
    found["training"]["hyperparameters"] = {SCRIPT: UNICODE, ENDLESS: ENDLESS}
    found["lineage"]["run"]["image"] = ENDLESS
    before = run(stopped_at="verify-model", error=f"{SCRIPT}\n{ENDLESS}\n{UNICODE}")
    steps = [replace(step, name=f"{SCRIPT}{step.name}", depends_on=()) for step in before.steps]
    return replace(before, name=ENDLESS, parameters={SCRIPT: [UNICODE, ENDLESS]}, steps=tuple(steps)), found


def test_a_run_that_went_through_shows_every_section_with_its_numbers() -> None:
    found, page = documents(), Page(whole())
    model, champion = found["evaluation"]["model"], found["evaluation"]["champion"]
    assert list(page.sections) == [
        "", "verdict", "steps", "data", "training", "evaluation", "calibration", "confusion", "slices", "parity",
        "lineage",
    ]  # fmt: skip
    head = page.text("")
    assert "Version 3 is published" in head
    assert f"On {MODEL.tests['unseen']}, top-1 is {model['unseen']['top1']:.1%} (baseline" in head
    assert f"version 2, the champion ({champion['unseen']['top1']:.1%})" in head
    for check in found["verdict"]["checks"]:
        sign = {">=": "≥", "<=": "≤"}[check["comparison"]]
        interval = [f" {' to '.join(map(number, check['interval']))}"] if check["interval"] else [""]
        found_and_asked = [number(check["value"]) + interval[0], f"{sign} {number(check['threshold'])}"]
        assert page.row(check["name"])[1:] == [*found_and_asked, "passed"]
    assert page.row("train-model") == ["train-model succeeded", "7.6 s", "1,187 MiB"]
    data = page.text("data")
    assert "1,129,882" in data
    assert "Last day 2026-03-08 the first is 2025-05-01" in data
    assert "PSI of labels: 0.00" in data
    assert "warning shift 1 of 14 quantities has moved" in data
    assert "PSI 0.31, −0.49 sd" in data
    assert page.row("test-unseen")[1:3] == ["2,711", "104,000"]
    assert "Epoch 18 of 24 was the best" in page.text("training")
    evaluation = page.text("evaluation")
    for who in ("model", "champion", "baseline"):
        for split in ("seen", "unseen", "all"):
            metrics = found["evaluation"][who][split]
            low, high = (100 * end for end in metrics["top1_interval"])
            assert f"{metrics['top1']:.1%} {low:.1f}–{high:.1f}" in evaluation
            assert f"{metrics['cross_entropy']:.4g}" in evaluation
    assert page.row("10%–20%")[3] == "87,480"
    parity = page.row("OpenVINO")
    assert parity == ["OpenVINO 2026.4.1", "1.3 × 10⁻⁶ relative 1.4 × 10⁻⁵", "0", "passed"]
    assert json.dumps(found["parity"]["golden"]["request"]) in page.sections["parity"]
    assert found["parity"]["tolerances"]["reason"] in page.text("parity")
    lineage = page.text("lineage")
    for value in (
        found["lineage"]["run"]["image"],
        found["lineage"]["run"]["commit"],
        found["lineage"]["data"]["version"],
        found["lineage"]["data"][LAST]["sha256"],
        found["lineage"]["sha256"]["model.onnx"],
        "s3://models/candidates",
        "parameters.version 0.0.2",
    ):
        assert value in lineage


def test_each_label_has_a_row_with_all_metrics_and_those_with_most_rows_come_first() -> None:
    evaluation = documents()["evaluation"]
    rows = [row for row in Page(whole()).rows if len(row) == 7 and re.fullmatch(r"[A-Z]{2} ", row[0])]
    assert len(rows) == 72
    expected = sorted(evaluation["slices"]["label"], key=lambda entry: -entry["rows"])
    assert [row[0].strip() for row in rows] == [entry["value"] for entry in expected]
    first, n = expected[0], evaluation["labels"].index(expected[0]["value"])
    matrix = np.array(evaluation["figures"]["confusion"])
    assert [cell.strip() for cell in rows[0][1:]] == [
        f"{first['rows']:,}",
        f"{first['top1']:.1%}",
        f"{first['cross_entropy']:.3f}",
        f"{first['calibration_error']:.3f}",
        f"{first[OWN]:.1%}",
        f"{matrix[n, n] / matrix[:, n].sum():.1%}",
    ]


def test_the_strongest_confusion_is_named_first() -> None:
    evaluation = documents()["evaluation"]
    matrix = np.array(evaluation["figures"]["confusion"])
    off = matrix - np.diag(np.diag(matrix))
    true, predicted = np.unravel_index(off.argmax(), off.shape)
    page = Page(whole())
    heading = next(n for n, row in enumerate(page.rows) if row and row[0].strip() == "True")
    labels, share = evaluation["labels"], off.max() / matrix[true].sum()
    first = [cell.strip() for cell in page.rows[heading + 1]]
    assert first == [labels[true], labels[predicted], f"{off.max():,}", f"{share:.1%}"]


def test_the_picture_of_all_confusions_has_a_pixel_for_each_pair() -> None:
    (image,) = (load for load in Page(whole()).loads if load.startswith("data:"))
    png = base64.b64decode(image.partition("base64,")[2])
    assert struct.unpack(">II", png[16:24]) == (72, 72)  # width and height in the header of a PNG


def test_a_label_that_never_occurs_and_is_never_predicted_has_dashes() -> None:
    found = documents(labels=4)
    evaluation = found["evaluation"]
    evaluation["slices"]["label"][0] = {"value": "BR", "rows": 0, "examples": 0}
    evaluation["labels"][0] = "BR"
    for row in evaluation["figures"]["confusion"]:
        row[0] = 0
    evaluation["figures"]["confusion"][0] = [0, 0, 0, 0]
    assert Page(render_report(MODEL, found, run())).row("BR")[1:] == ["0", "–", "–", "–", "–", "–"]


def test_a_model_that_makes_no_mistake_has_no_confusions() -> None:
    found = documents(labels=3)
    found["evaluation"]["figures"]["confusion"] = [[5, 0, 0], [0, 6, 0], [0, 0, 7]]
    assert "Each row was predicted right." in Page(render_report(MODEL, found, run())).text("confusion")


def test_without_the_most_telling_split_the_page_speaks_of_the_next() -> None:
    found = documents(labels=5)
    for who in ("model", "baseline", "champion"):
        found["evaluation"][who]["unseen"] = None
    page = Page(render_report(MODEL, found, run()))
    assert f"On {MODEL.tests['seen']}, top-1 is" in page.text("")
    assert "Top-1, seen" in page.text("")
    assert "never met" not in page.text("evaluation")


def test_a_regression_has_the_metrics_figures_and_slices_of_its_kind() -> None:
    page, evaluation = Page(pages()["regression"]), cars()["evaluation"]
    assert [*page.sections][5:-2] == ["evaluation", "residuals", "slices"]
    scores, baseline = evaluation["model"]["test"], evaluation["baseline"]["test"]
    assert (
        f"On the test split, mean absolute error is {scores['mae']:.3f} (baseline {baseline['mae']:.3f})"
        in page.text("")
    )
    assert "top-1" not in page.text("").lower()
    low, high = scores["mae_interval"]
    assert page.row("This model") == [
        "This model",
        f"{scores['mae']:.3f} {low:.2f}–{high:.2f}",
        f"{scores['rmse']:.3f}",
        f"{scores['r2']:.4f}",
    ]
    assert page.text("evaluation").count("This model") == 1, "all test rows are those of the one split"
    assert len(page.rows[[row[0].strip() for row in page.rows if row].index("Target") :]) >= 10
    assert f"{evaluation['figures']['residuals'][0]['examples']}" in page.text("residuals")
    diesel = next(entry for entry in evaluation["slices"]["fuel"] if entry["value"] == "diesel")
    assert page.row("diesel")[1:3] == [str(diesel["rows"]), f"{diesel['mae']:.3f}"]
    assert "below 100,000 km" in page.text("slices")
    assert page.row("fuel") == ["fuel", "diesel 60.0%, petrol 40.0%"]
    assert page.row("price")[0] == "price k€ target"


def published(**changed: Any) -> tuple[dict[str, Any], Run]:
    """A run that published: changes of its verdict, its model's record and its champion's score."""
    found = documents(labels=5)
    found["verdict"] |= changed.get("verdict", {})
    found["lineage"]["model"] |= changed.get("model", {})
    found["evaluation"]["champion"] |= changed.get("champion", {})
    for split in ("seen", "unseen", "all"):
        found["evaluation"]["champion"][split]["top1"] += changed.get("champion_gains", 0.0)
    found["evaluation"] |= changed.get("evaluation", {})
    return found, changed.get("run", run())


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in documents(labels=5).items() if name not in names}


FAILING = [{**documents(labels=5)["verdict"]["checks"][0], "passed": False}]


@pytest.mark.parametrize(
    ("given", "title", "says"),
    [
        (
            published(),
            "Version 3 is published",
            "passed all 4 checks: it is a candidate, which production does not serve",
        ),
        (published(model={"prod_flag": True}), "Version 3 is published", "it may be proposed for production"),
        (published(champion_gains=0.3), "Version 3 is published", "points less than version 2"),
        (published(champion_gains=-0.1), "Version 3 is published", "points more than version 2"),
        (
            published(verdict={"passed": False, "mode": "warn", "checks": FAILING}),
            "Version 3 is kept but not served",
            "The model failed gain-over-baseline. It is in s3://models/candidates/jukebox/.failed/3. What is in use",
        ),
        (
            published(verdict={"passed": False, "mode": "off", "checks": []}),
            "Version 3 is kept but not served",
            "The gate was off, so the model was not judged. It is in",
        ),
        (
            published(champion={"rows_left_out": 4000, "only_model": ["XX"], "only_champion": ["YY"]}),
            "Version 3 is published",
            "on the rows of the labels that both know",
        ),
        (
            published(
                evaluation={"champion": None, "not_compared": "version 2 cannot be compared with it: it takes x"}
            ),
            "Version 3 is published",
            "version 2 cannot be compared with it: it takes x.",
        ),
        (
            published(run=run(stopped_at="publish-model")),
            "Version 3 is published",
            "published, but publish-model failed after that",
        ),
        ((documents(labels=5, champion=None), run()), "Version 1 is published", "there is no champion yet"),
        (
            (refused(documents(labels=5)), run(stopped_at="verify-model")),
            "The model was refused",
            "It failed 1 of 4 checks: gain-over-baseline (",
        ),
        (
            (broken_data(documents(labels=5)), run(stopped_at="validate-data")),
            "The run stopped at validate-data",
            f"The data failed 2 of 11 checks of its contract: {LAST}-columns and weight-range. Nothing was published",
        ),
        (
            (without("parity", "lineage"), run(stopped_at="verify-model")),
            "The run stopped at verify-model",
            "It left no message; see its log. Nothing was published",
        ),
        (
            (
                {
                    **without("parity", "lineage"),
                    "verdict": refused(documents(labels=5))["verdict"] | {"mode": "warn"},
                },
                run(stopped_at="verify-model"),
            ),
            "The run stopped at verify-model",
            "Nothing was published",
        ),
        (({}, run(state="failed", steps=())), "The run failed", "No step reports a reason"),
        ((without("lineage"), run()), "The run succeeded", "No model was published"),
    ],
)
def test_the_head_says_what_was_decided_and_why(given: tuple[dict[str, Any], Run], title: str, says: str) -> None:
    page = Page(render_without_pictures(*given))
    assert title in page.text("")
    assert says in page.text("")
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


def test_what_the_comparison_leaves_out_is_said() -> None:
    given = published(champion={"rows_left_out": 4321, "only_model": ["XX", "YY"], "only_champion": ["ZZ"]})
    shown = Page(render_without_pictures(*given)).text("evaluation")
    assert "4,321 rows are left out" in shown
    assert "Version 2 does not know XX, YY." in shown
    assert "This model does not know ZZ." in shown
    assert "same rows as below" in shown


def test_another_version_that_was_asked_for_is_not_called_the_champion() -> None:
    page = Page(render_report(MODEL, *published(champion={"is_best": False})))
    assert "version 2, the requested version (" in page.text("")
    assert "; version 2 " in page.text("")
    assert "champion" not in page.text("")
    assert "Asked for version 2" in page.text("evaluation")


def test_a_champion_that_knows_nothing_of_a_split_leaves_it_empty() -> None:
    found, of_run = published(champion={"rows_left_out": 104_000, "only_model": ["XX"]})
    found["evaluation"]["champion"]["unseen"] = found["evaluation"]["champion"]["model"]["unseen"] = None
    page = Page(render_report(MODEL, found, of_run))
    assert "on these, version 2 knows none of the labels" in page.text("")


def test_a_version_that_is_damaged_is_said_with_what_to_do() -> None:
    said = "Version 4 (/models/jukebox/4) is damaged: its lineage.json is not a JSON object."
    found = published(evaluation={"damaged": [said]})
    assert f"not the champion {said}" in Page(render_without_pictures(*found)).text("evaluation")


def test_no_page_says_what_is_served_of_what_it_cannot_know() -> None:
    for page in map(Page, (whole(), render_without_pictures(*published()))):
        shown = " ".join(page.text(id_) for id_ in page.sections)
        assert "serves now" not in shown
        assert "served now" not in shown


def test_the_page_shows_the_verdict_by_which_it_was_published() -> None:
    """If the champion was another one by then, the model was judged again."""
    found, run_ = published()
    found["lineage"]["verdict"] = {**found["verdict"], "summary": "Good enough, also against version 9."}
    assert "also against version 9" in Page(render_without_pictures(found, run_)).text("verdict")


SHOWN_BY = {
    "verdict": "verdict",
    "data": "validation",
    "training": "training",
    "evaluation": "evaluation",
    "parity": "parity",
}
LEFT_BY = {
    "fetch-data": (),
    "validate-data": ("preprocessing",),
    "preprocess-data": ("validation",),
    "train-model": ("validation", "preprocessing"),
    "evaluate-model": ("validation", "preprocessing", "training"),
    "verify-model": ("validation", "preprocessing", "training", "evaluation", "verdict"),
    "publish-model": ("validation", "preprocessing", "training", "evaluation", "verdict", "parity"),
}


@pytest.mark.parametrize("step", LEFT_BY)
def test_a_run_that_stopped_says_where_and_why_and_shows_what_there_is(step: str) -> None:
    found = documents(labels=5)
    left = {name: found[name] for name in LEFT_BY[step]}
    page = Page(render_without_pictures(left, run(stopped_at=step, error="the disk is full")))
    assert f"The run stopped at {step}" in page.text("")
    assert f"{step} said the disk is full" in page.text("")
    assert f"{step} failed" in page.text("steps")
    sentence = page.sections.get("missing", "").partition("nothing to show of ")[2]
    missing = re.split(r", | and ", sentence.strip().removesuffix("."))
    for section, document in SHOWN_BY.items():
        assert (section in page.sections) == (document in LEFT_BY[step])
        assert (section in missing) == (document not in LEFT_BY[step])
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.sets(st.sampled_from(DOCUMENTS)))
def test_whatever_is_absent_the_page_is_whole(absent: set[str]) -> None:
    found = documents(labels=3)
    page = Page(render_without_pictures({name: found[name] for name in DOCUMENTS if name not in absent}, run()))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert page.tags.count("h1") == 1


@pytest.mark.parametrize(
    "name", ["published", "refused", "broken data", "nothing", "hostile", "evaluation", "regression"]
)
def test_a_page_is_self_contained_and_well_formed(name: str) -> None:
    page = Page(pages()[name])
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in page.loads)
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert page.tags.count("h1") == 1
    assert len(pages()[name].encode()) < 600_000


def test_markup_in_names_and_messages_is_shown_as_text() -> None:
    text = "\n".join(Page(pages()["hostile"]).sections.values())
    assert "{{ 7 * 7 }}" in text
    for place in (f"check {SCRIPT}", f"{SCRIPT}verify-model said", f"parameters.{SCRIPT}"):
        assert place in text


def test_all_of_a_long_error_is_not_needed_but_its_begin_and_end_are() -> None:
    error = "DataInvalid: the cause\n" + "row\n" * 100_000 + "what to do"
    html = render_report(MODEL, {}, run(stopped_at="fetch-data", error=error))
    assert "DataInvalid: the cause" in html
    assert "what to do" in html
    assert "characters are left out here" in html
    assert len(html) < 60_000


@pytest.mark.parametrize(
    "secret", ["https://user:hunter2@example.org/x?X-Amz-Signature=hunter2&b=1", "s3://key:hunter2@b/k"]
)
def test_credentials_are_shown_nowhere(secret: str) -> None:
    found = documents(labels=4)
    found["lineage"]["data"][FIRST]["source"] = secret
    found["validation"]["checks"][0] |= {"passed": False, "message": f"see {secret}", "examples": [{"source": secret}]}
    found["verdict"]["summary"] = found["lineage"]["verdict"]["summary"] = f"of {secret}."
    about = run(stopped_at="publish-model", error=f"GET {secret} failed", store=secret, parameters={"data": [secret]})
    texts = (
        render_without_pictures(found, about),
        evaluation_html(MODEL, found["evaluation"], found["verdict"]),
        summary_markdown(found["lineage"], secret),
    )
    for text in texts:
        assert "hunter2" not in text
    assert "GET " in texts[0]
    assert "/x?…" in texts[0] or "s3://b/k" in texts[0]


def test_the_same_run_gives_the_same_bytes_in_another_process() -> None:
    program = """
import hashlib, sys
from pipeline.core.report import render_report
assert "matplotlib" not in sys.modules, "matplotlib is imported where nothing is drawn"
from pipeline.models.jukebox import MODEL
from tests.report_fixture import documents, run
print(hashlib.sha256(render_report(MODEL, documents(), run()).encode()).hexdigest())
"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_the_dashboard_sees_a_whole_page_of_the_evaluation() -> None:
    page = Page(pages()["evaluation"])
    assert list(page.sections) == ["", "verdict", "evaluation", "calibration", "confusion", "slices"]
    assert "The model passed the gate" in page.text("")
    found = documents(labels=5)
    found["verdict"]["passed"] = False
    assert "The model did not pass the gate" in evaluation_html(MODEL, found["evaluation"], found["verdict"])


def test_where_the_gate_is_off_the_dashboard_does_not_say_that_it_was_passed() -> None:
    found = documents(labels=5)
    verdict = found["verdict"] | {"mode": "off", "checks": [], "summary": "Nothing was judged."}
    assert "passed" not in Page(evaluation_html(MODEL, found["evaluation"], verdict)).text("").lower()


def test_the_summary_says_what_was_published_where_and_how_good_it_is() -> None:
    lineage = documents(labels=5)["lineage"]
    lineage["run"]["name"] = "<run>"
    assert summary_markdown(lineage, "s3://models/jukebox/3") == (
        "**jukebox 0.0.2, version 3** · \\<run\\>\n\nPublished: s3://models/jukebox/3\n\nPassed: all 4 checks hold.\n\n"
        f"{FIRST}: 14,245 records read, 14,245 rows written, 1,204,118 bytes, sha256 {'3' * 64}\n\n"
        f"{LAST}: 1,129,882 records read, 1,129,882 rows written, 18,774,201 bytes, sha256 {'c' * 64}\n"
    )


def test_the_page_tells_how_many_records_were_read_and_how_many_rows_were_written() -> None:
    found = documents(labels=3)
    found["tables"][LAST]["records"] += 1
    page = Page(render_without_pictures(found, run()))
    assert [cell.strip() for cell in page.row(LAST)[1:]] == ["1", "18,774,201", "1,129,883", "1,129,882"]
    assert "3" * 64 in page.text("data")


def test_a_version_from_before_records_were_counted_has_a_summary() -> None:
    lineage = documents(labels=3)["lineage"]
    del lineage["data"][FIRST]["records"]
    assert f"{FIRST}: 14,245 records read" in summary_markdown(lineage, "s3://models/jukebox/3")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1_129_882, "1,129,882"), (0.123456, "0.1235"), (-0.04, "−0.04"), (9.5e-7, "9.5 × 10⁻⁷"),
     (-2e-5, "−2.0 × 10⁻⁵"), (0.0, "0"), (243_238.4, "243,238"), (-20_000.0, "−20,000"), (None, "–")],
)  # fmt: skip
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_and_times_are_short() -> None:
    assert [percent(0.12345), percent(None), percent(1 / 15, 0)] == ["12.3%", "–", "7%"]
    assert [seconds(0.4), seconds(7.64), seconds(200), seconds(7500)] == ["0.40 s", "7.6 s", "3 min 20 s", "2 h 5 min"]


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=11, max_size=11).map(sorted),
    st.lists(st.floats(0, 1), min_size=10, max_size=10),
)
def test_histograms_stay_in_their_picture(edges: list[float], shares: list[float]) -> None:
    for left, width, height in bars({"edges": edges, "shares": shares}):
        assert left >= -1e-9
        assert left + width <= 1 + 1e-9
        assert 0 <= height <= 1


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    names = [f"step-{n}" for n in range(draw(st.integers(1, 9)))]
    return {name: draw(st.lists(st.sampled_from(names[:n]), unique=True)) if n else [] for n, name in enumerate(names)}


@settings(deadline=None, derandomize=True, max_examples=100)
@given(graphs())
def test_the_graph_is_drawn_from_what_the_steps_depend_on(depends_on: dict[str, list[str]]) -> None:
    graph = charts.layout(depends_on)
    at = {node.name: (node.x, node.y) for node in graph.nodes}
    assert set(at) == set(depends_on)
    assert all(at[parent][1] < at[name][1] for name, parents in depends_on.items() for parent in parents)
    places = sorted(at.values(), key=lambda place: (place[1], place[0]))
    for (x0, y0), (x1, y1) in pairwise(places):
        assert y0 != y1 or x1 - x0 >= charts.BOX[0], "boxes overlap"
    width, height = charts.BOX
    assert all(width / 2 <= x <= graph.width - width / 2 and y + height / 2 <= graph.height for x, y in at.values())
    # Each step that waits is led to, and what is reached over the links is what was reached before.
    assert {target for _, target in graph.edges} == {name for name, parents in depends_on.items() if parents}


def test_links_that_follow_from_others_are_not_drawn() -> None:
    graph = charts.layout({"a": [], "b": ["a"], "c": ["a", "b"], "d": ["a", "b", "c"]})
    assert [target for _, target in graph.edges] == ["b", "c", "d"]


def test_labels_that_are_taken_for_one_another_stand_together() -> None:
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat([0, 1, 2], 6))
    shares = np.where(group[:, None] == group, 0.15, 0.005)
    ordered = group[charts.seriation(shares)]
    assert np.count_nonzero(np.diff(ordered)) == 2


def test_the_picture_of_all_confusions_shows_groups() -> None:
    near = np.array([[(i - j) % 2 == 0 for i in range(6)] for j in range(6)])
    svg = charts.confusion(list("ABABAB"), np.where(near, 50, 1).tolist())
    assert re.findall(r">([AB])</text>", svg) in (list("AAABBB") * 2, list("BBBAAA") * 2)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with browser() as found:
        yield found


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Any:
    """Opens a page by its name, and tells the browser."""

    def open_page(name: str, **how: Any) -> Browser:
        file = tmp_path / "page.html"
        file.write_text(pages()[name])
        chromium.open(file, **how)
        return chromium

    return open_page


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(
    "name", ["published", "refused", "broken data", "nothing", "hostile", "evaluation", "regression"]
)
def test_a_page_fits_the_screen_and_loads_nothing(opened: Any, name: str, width: int) -> None:
    page = opened(name, width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    itself, *others = page.requested
    assert itself.startswith("file:")
    assert all(url.startswith("data:") for url in others)
    assert page.complaints == []


@pytest.mark.parametrize("name", ["published", "hostile", "regression"])
def test_a_printed_page_is_not_cut_and_hides_nothing(opened: Any, name: str) -> None:
    page = opened(name, width=688, media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 688
    folded = page.evaluate("[...document.querySelectorAll('details > *')].map(e => e.checkVisibility())")
    assert folded
    assert all(folded)
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"


# The smallest contrast of a text with the ground of the page, by WCAG 2's formula; what is hidden does not count.
CONTRAST = """
(() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll('body *')].filter(e => e.childNodes[0]?.nodeType === 3
    && e.childNodes[0].textContent.trim() && !['STYLE', 'title'].includes(e.tagName));
  return Math.min(...texts.map(e => {
    const style = getComputedStyle(e);
    const ink = luminance(e instanceof SVGElement ? style.fill : style.color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  }));
})()
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["published", "broken data", "regression"])
def test_every_text_stands_out_from_the_ground(opened: Any, name: str, dark: bool) -> None:
    page = opened(name, width=390, dark=dark)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", ground)[0]) < 64) == dark
    assert page.evaluate(CONTRAST) >= 4.5  # WCAG 2.2, 1.4.3


def test_the_text_of_pictures_is_readable_on_a_phone(opened: Any) -> None:
    page = opened("published", width=390)
    sizes = """
    [...document.querySelectorAll('.chart')].flatMap(svg => [...svg.querySelectorAll('text')].map(text =>
      parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))
    """
    found = page.evaluate(sizes)
    assert len(found) > 100
    assert min(found) >= 8.9


def test_the_text_of_pictures_stays_in_them(opened: Any) -> None:
    page = opened("published", width=390)
    beyond = """
    [...document.querySelectorAll('.chart')].flatMap(svg => {
      const frame = svg.getBoundingClientRect();
      return [...svg.querySelectorAll('text')].filter(text => {
        const box = text.getBoundingClientRect();
        return box.left < frame.left - 2 || box.right > frame.right + 2
          || box.top < frame.top - 2 || box.bottom > frame.bottom + 2;
      }).map(text => text.textContent);
    })
    """
    assert page.evaluate(beyond) == []
