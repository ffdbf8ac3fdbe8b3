"""Runs to report on: invented, but consistent (rates are counted from one confusion matrix, shares sum to 1)."""

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.core.encoders import fit
from pipeline.core.report import Run, Step
from tests.active_model import MODEL, TABLES

FIRST, *_, LAST = TABLES
OWN = MODEL.metrics[0].name  # the metric that the model adds to those of its kind
MOVED = MODEL.features[5].name  # away from the reference
GRAPH = {
    "fetch-data": (),
    "validate-data": ("fetch-data",),
    "preprocess-data": ("fetch-data",),
    # As a compiler lists them, with the links that follow from others.
    "train-model": ("validate-data", "preprocess-data"),
    "evaluate-model": ("train-model", "preprocess-data"),
    "convert-model": ("train-model",),
    "verify-model": ("evaluate-model", "convert-model", "preprocess-data"),
    "publish-model": ("verify-model", "convert-model", "evaluate-model"),
}
SECONDS = (1.42, 1.91, 1.18, 7.64, 0.87, 3.52, 3.98, 0.66)
MEMORY = (402, 611, 498, 1187, 214, 1043, 1312, 151)


def run(*, stopped_at: str | None = None, error: str = "", **changed: Any) -> Run:
    """A run; ``stopped_at`` names the step that failed, with ``error``: what comes after it was skipped."""
    steps: list[Step] = []
    for (name, depends_on), seconds, memory in zip(GRAPH.items(), SECONDS, MEMORY, strict=True):
        state = "succeeded"
        if name == stopped_at:
            state = "failed"
        elif any(step.state != "succeeded" for step in steps if step.name in depends_on):
            state = "skipped"
        steps.append(
            Step(
                name=name,
                state=state,  # type: ignore[arg-type]
                seconds=0.0 if state == "skipped" else seconds,
                peak_memory_mib=None if state == "skipped" else memory,
                depends_on=depends_on,
                error=error if state == "failed" else "",
            )
        )
    fields: dict[str, Any] = {
        "name": "prod-train-save-3f9c1a7be02d",
        "id": "5f0c8f6e-5d0b-4a53-9a55-2c0fd0a1b7e4",
        "started": datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC),
        "state": "failed" if stopped_at else "succeeded",
        "steps": tuple(steps),
        "parameters": {
            "hyperparameters": {"epochs": 24},
            "model_name": "jukebox",
            "version": "0.0.2",
            "cluster_domain": "<CLUSTER_DOMAIN>",
            "prod_flag": False,
            "data": {
                FIRST: f"s3://data/{FIRST}/*.parquet",
                LAST: f"https://data.example.org/{LAST}.parquet",
            },
        },
        "store": "s3://models/candidates",
    }
    return Run(**{**fields, **changed})


def documents(*, labels: int = 72, champion: int | None = 2, seed: int = 0) -> dict[str, Any]:
    """The seven documents of a run that went through; without ``champion`` it is the first."""
    rng = np.random.default_rng(seed)
    names = [first + second for first in "ABCDEFGHI" for second in "KLMNOPQR"][:labels]
    confusion = {split: _confusion(rng, labels, rows) for split, rows in (("seen", 220_000), ("unseen", 104_000))}
    evaluation = _evaluation(rng, names, confusion, champion)
    verdict = _verdict(evaluation)
    found: dict[str, Any] = {
        "validation": _validation(rng, names),
        "preprocessing": _preprocessing(rng, names),
        "training": _training(),
        "evaluation": evaluation,
        "verdict": verdict,
        "parity": _parity(rng, labels),
    }
    found["tables"] = _tables(found["validation"]["profile"])
    found["lineage"] = _lineage(found, number=1 if champion is None else champion + 1)
    return found


def refused(found: dict[str, Any]) -> dict[str, Any]:
    """The documents of the same run, had the gate refused its model."""
    found = {
        name: deepcopy(found[name]) for name in ("validation", "preprocessing", "training", "evaluation", "verdict")
    }
    check = found["verdict"]["checks"][0]
    check["threshold"], check["passed"] = check["value"] + 0.5, False
    found["verdict"].update(passed=False, summary="Refused: the gain over the baseline is too small.")
    return found


def broken_data(found: dict[str, Any]) -> dict[str, Any]:
    """The documents of a run that stopped at the validation of its data."""
    validation = deepcopy(found["validation"])
    validation["passed"] = False
    failed = {
        f"{LAST}-columns": (
            1,
            f"{LAST} has no column 'day'; found 'days', which looks like it: rename it back",
            [],
        ),
        "weight-range": (
            412,
            "412 of 14,245 rows have a weight outside 0 to 300 kg",
            [{"id": f"id{n:020d}", "name": "Neon Avenue", "weight": 301.5 + n} for n in range(5)],
        ),
    }
    for name, (count, message, examples) in failed.items():
        check = {
            "name": name,
            "severity": "error",
            "passed": False,
            "count": count,
            "examples": examples,
            "message": message,
        }
        validation["checks"].append(check)
    return {"validation": validation}


def _confusion(rng: np.random.Generator, labels: int, rows: int) -> NDArray[np.int64]:
    """int64[labels, labels]: rows by true and by predicted label. Labels of a group are mistaken often."""
    group = rng.integers(9, size=labels)
    weight = rng.gamma(0.5, size=(labels, labels)) * np.where(group[:, None] == group, 6.0, 0.25)
    weight[np.diag_indices(labels)] += rng.gamma(4.0, 0.12 * labels**0.5, size=labels)
    of_label = rng.multinomial(rows, rng.dirichlet(np.full(labels, 30.0)))
    return np.array([rng.multinomial(n, w / w.sum()) for n, w in zip(of_label, weight, strict=True)])


def _metrics(rows: int, top1: float, cross_entropy: float, calibration_error: float) -> dict[str, Any]:
    half = 0.9 / np.sqrt(rows) * 4
    return {
        "rows": rows,
        "examples": rows // 38,
        "top1": top1,
        OWN: min(1.0, top1 * 2.7),
        "cross_entropy": cross_entropy,
        "calibration_error": calibration_error,
        "top1_interval": [top1 - half, top1 + half],
        f"{OWN}_interval": [2.7 * (top1 - half), min(1.0, 2.7 * (top1 + half))],
        "cross_entropy_interval": [cross_entropy - 6 * half, cross_entropy + 6 * half],
    }


def _evaluation(
    rng: np.random.Generator, labels: list[str], confusion: dict[str, NDArray[np.int64]], champion: int | None
) -> dict[str, Any]:
    confusion = {**confusion, "all": confusion["seen"] + confusion["unseen"]}
    rows = {split: int(matrix.sum()) for split, matrix in confusion.items()}
    top1 = {split: float(np.trace(matrix)) / rows[split] for split, matrix in confusion.items()}
    entropy = {"seen": 2.91, "unseen": 3.62, "all": 3.14}
    chance = 1 / len(labels)
    hit, of_label = np.diag(confusion["all"]), confusion["all"].sum(1)
    model = {s: _metrics(rows[s], top1[s], entropy[s], 0.021 if s == "seen" else 0.034) for s in rows}
    baseline = {s: _metrics(rows[s], 1.2 * chance, -float(np.log(chance)) - 0.01, 0.004) for s in rows}
    before = {s: _metrics(rows[s], top1[s] * 0.96, entropy[s] + 0.04, 0.029) for s in rows}
    bins = np.linspace(0, 1, 11)
    shares = [0.34, 0.27, 0.17, 0.1, 0.06, 0.03, 0.02, 0.01, 0.0, 0.0]
    middles = (bins[:-1] + bins[1:]) / 2
    return {
        "labels": labels,
        "model": model,
        "baseline": baseline,
        "champion": None
        if champion is None
        else {
            **before,
            "version": champion,
            "is_best": True,
            "model": dict(model),
            "rows_left_out": 0,
            "only_model": [],
            "only_champion": [],
            "difference": {"metric": "cross_entropy", "value": -0.04, "interval": [-0.05, -0.03]},
        },
        "served": None,
        "not_compared": "",
        "served_not_compared": "",
        "damaged": [],
        "slices": {
            "label": [
                {"value": label, **_metrics(int(of_label[n]), float(hit[n] / of_label[n]), 2.5 + 0.02 * n, 0.05)}
                for n, label in enumerate(labels)
            ]
        },
        "figures": {
            "confusion": confusion["all"].tolist(),
            "calibration": [
                {
                    "low": float(low),
                    "high": float(high),
                    "confidence": float(middle),
                    "accuracy": float(middle * 0.93 + rng.normal(0, 0.012)),
                    "rows": int(rows["all"] * share),
                }
                for low, high, middle, share in zip(bins, bins[1:], middles, shares, strict=False)
                if share
            ],
        },
    }


def _verdict(evaluation: dict[str, Any]) -> dict[str, Any]:
    model, baseline, champion = evaluation["model"], evaluation["baseline"], evaluation["champion"]
    gain = baseline["unseen"]["cross_entropy"] - model["unseen"]["cross_entropy"]
    rows = [
        ("gain-over-baseline", gain, 0.02, ">=", "nats by which it beats the baseline on unseen rows"),
        (f"{OWN}-floor", model["all"][OWN], 0.1, ">=", "share of test rows whose label is among its guesses"),
        ("calibration-ceiling", model["all"]["calibration_error"], 0.15, "<=", "expected calibration error"),
    ]
    if champion:
        loss = model["all"]["cross_entropy"] - champion["all"]["cross_entropy"]
        rows.insert(
            1,
            (
                "no-worse-than-champion",
                loss,
                0.05,
                "<=",
                f"nats by which it is worse than version {champion['version']}",
            ),
        )
    checks = [
        {
            "name": name,
            "value": value,
            "interval": None if name == "calibration-ceiling" else [value - 0.01, value + 0.01],
            "where": "unseen" if name == "gain-over-baseline" else "",
            "against": {"gain-over-baseline": "baseline", "no-worse-than-champion": "champion"}.get(name, ""),
            "threshold": threshold,
            "comparison": comparison,
            "passed": True,
            "description": text,
        }
        for name, value, threshold, comparison, text in rows
    ]
    return {
        "passed": True,
        "mode": "enforce",
        "checks": checks,
        "champion": champion and {"version": champion["version"], "is_best": True, "compared": True},
        "served": None,
        "champion_version": "",
        "thresholds": {},
        "summary": f"Passed: all {len(checks)} checks hold.",
    }


def _training() -> dict[str, Any]:
    epochs = np.arange(1, 25)
    validation = 3.58 + 0.66 * np.exp(-epochs / 4) + 0.0016 * np.maximum(0, epochs - 17) ** 2
    return {
        "hyperparameters": {
            "epochs": 24, "batch_size": 512, "learning_rate": 0.003, "hidden_layers": [128, 128],
            "dropout": 0.0, "patience": 7, "seed": 0,
        },
        "history": [
            {
                "epoch": int(epoch),
                "loss": float(3.02 + 1.2 * np.exp(-epoch / 6)),
                "validation_loss": float(loss),
                "validation_top1": float(0.128 - 0.03 * (loss - 3.58)),
                "seconds": 0.21,
            }
            for epoch, loss in zip(epochs, validation, strict=True)
        ],
        "best_epoch": int(epochs[validation.argmin()]),
        "stopped_early": False,
        "parameters": 27_592,
        "seconds": 5.37,
    }  # fmt: skip


def _validation(rng: np.random.Generator, labels: list[str]) -> dict[str, Any]:
    names = f"{FIRST}-columns {LAST}-columns {FIRST}-unique feature-ranges orphan-ids codes days freshness".split()
    checks = [
        {"name": name, "severity": "error", "passed": True, "count": 0, "examples": [], "message": "as expected"}
        for name in names
    ]
    checks.append(
        {
            "name": "shift", "severity": "warning", "passed": False, "count": 1, "examples": [],
            "message": f"1 of 14 quantities has moved away from the reference: {MOVED}",
        }
    )  # fmt: skip
    features = {}
    for feature in MODEL.features:
        bounds: Any = feature.usual or (feature.low, feature.high)
        low, high = bounds
        values = low + (high - low) * rng.beta(rng.uniform(0.6, 5), rng.uniform(0.6, 5), size=4000)
        if feature.dtype in (pl.Boolean, pl.Int64):
            values = values.round()
        shares, edges = np.histogram(values, bins=10)
        features[feature.name] = {
            "mean": float(values.mean()), "std": float(values.std()),
            "min": float(values.min()), "max": float(values.max()),
            "edges": edges.tolist(), "shares": (shares / shares.sum()).tolist(),
        }  # fmt: skip
    shares_of_labels = rng.dirichlet(np.full(len(labels), 30.0))
    return {
        "passed": True,
        "checks": checks,
        "profile": {
            "rows": {FIRST: 14_245, LAST: 1_129_882},
            "examples": {"train": 9_120, "validation": 1_344, "test-seen": 3_980, "test-unseen": 2_711},
            "rows_of_examples": 1_125_714,
            "first_day": "2025-05-01", "last_day": "2026-03-08",
            "features": features,
            "label_shares": dict(zip(labels, shares_of_labels.tolist(), strict=True)),
        },
        "shift": {
            **{name: {"psi": 0.02, "mean_difference": 0.01} for name in features},
            MOVED: {"psi": 0.31, "mean_difference": -0.49},
            "labels": {"psi": 0.004, "mean_difference": None},
        },
        "shift_from_served": None,
    }  # fmt: skip


def _preprocessing(rng: np.random.Generator, labels: list[str]) -> dict[str, Any]:
    return {
        "features": [feature.name for feature in MODEL.features],
        "labels": labels,
        "encoding": fit(MODEL.features, pl.LazyFrame(schema={feature.name: pl.Float64 for feature in MODEL.features})),
        "offset": [0.0] * len(labels),
        "factor": [1.0] * len(labels),
        "mean": rng.normal(size=13).tolist(),
        "variance": rng.gamma(2, size=13).tolist(),
        "splits": {
            "train": {"examples": 9_120, "rows": 689_404, "first_day": "2025-05-01", "last_day": "2026-01-05"},
            "validation": {"examples": 1_344, "rows": 112_310, "first_day": "2025-05-01", "last_day": "2026-03-08"},
            "test-seen": {"examples": 3_980, "rows": 220_000, "first_day": "2026-01-06", "last_day": "2026-03-08"},
            "test-unseen": {"examples": 2_711, "rows": 104_000, "first_day": "2025-05-01", "last_day": "2026-03-08"},
        },
    }


def _parity(rng: np.random.Generator, labels: int) -> dict[str, Any]:
    def runtime(name: str, version: str, absolute: float, relative: float) -> dict[str, Any]:
        return {
            "runtime": name, "version": version, "max_absolute": absolute, "max_relative": relative,
            "decisions_changed": 0, "passed": True,
        }  # fmt: skip

    return {
        "passed": True,
        "examples": 6_691,
        "runtimes": [
            runtime("ONNX Runtime", "1.32.0", 9.5e-7, 9.2e-6),
            runtime("OpenVINO", "2026.4.1", 1.3e-6, 1.4e-5),
        ],
        "tolerances": {
            "absolute": 1e-5,
            "relative": 1e-3,
            "reason": "float32 sums in another order differ in the last places; bfloat16 would by 8e-4",
        },
        "golden": {
            "request": {
                "inputs": [
                    {
                        "name": "features", "shape": [1, 13], "datatype": "FP32",
                        "data": rng.normal(size=13).round(4).tolist(),
                    }
                ]
            },
            "response": {
                "outputs": [
                    {
                        "name": MODEL.kind.output, "shape": [1, labels], "datatype": "FP32",
                        "data": rng.dirichlet(np.ones(labels)).round(6).tolist(),
                    }
                ]
            },
        },
    }  # fmt: skip


def _tables(profile: dict[str, Any]) -> dict[str, Any]:
    def table(source: str, rows: int, size: int, digit: str) -> dict[str, Any]:
        return {"source": source, "sha256": digit * 64, "records": rows, "rows": rows, "bytes": size, "files": 1}

    return {
        FIRST: table(f"s3://data/{FIRST}/*.parquet", profile["rows"][FIRST], 1_204_118, "3"),
        LAST: table(f"https://data.example.org/{LAST}.parquet", profile["rows"][LAST], 18_774_201, "c"),
    }


def _lineage(found: dict[str, Any], number: int) -> dict[str, Any]:
    champion = found["verdict"]["champion"]
    profile = found["validation"]["profile"]
    return {
        "schema": 2,
        "model": {"name": "jukebox", "version": "0.0.2", "number": number, "prod_flag": False, "use": "candidate"},
        "run": {
            "id": "5f0c8f6e-5d0b-4a53-9a55-2c0fd0a1b7e4",
            "name": "prod-train-save-3f9c1a7be02d",
            "commit": "0d4f6a8c2b1e3d5f7a9b0c2d4e6f8a1b3c5d7e9f",
            "commit_time": "2026-03-14T08:59:01Z",
            "image": "registry.example.org/jukebox/training@sha256:" + "ab" * 32,
        },
        "data": {
            "version": "7e" * 32,
            **found["tables"],
            "profile": profile,
        },
        "shift": {"champion": found["validation"]["shift"], "served": found["validation"]["shift_from_served"]},
        "encoding": found["preprocessing"]["encoding"],
        "hyperparameters": found["training"]["hyperparameters"],
        "metrics": found["evaluation"]["model"],
        "beside": {who: found["evaluation"][who] for who in ("baseline", "champion", "served")},
        "verdict": found["verdict"],
        "champion": champion and champion["version"],
        "served": None,
        "parity": {key: value for key, value in found["parity"].items() if key != "golden"},
        "sha256": {"model.onnx": "5d" * 32, "labels.json": "e1" * 32},
        "created": "2026-03-14T09:27:16Z",
    }
