"""The profile of the charts' data, and how far the data lies from the profile of other data.

The features are weighed by chart rows: a song that stands in the charts of 30 countries for a month counts 900 times,
as it does in training. The Global chart is no country and takes no part.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.core.contract import Column
from pipeline.models.jukebox.tables import COUNTRY, DATE, FEATURES

BINS = 10
# A bin or a country that only one side has would make the index infinite.
SMALLEST_SHARE = 1e-4
LARGEST = float(np.finfo(np.float32).max)  # the squares of larger values would leave float64, too

Floats = NDArray[np.float64]


def describe(charted: pl.LazyFrame, charts: pl.LazyFrame) -> dict[str, Any]:
    """Describe the data, fit for JSON: its size and days, the features' moments and ten bins, the countries' shares.

    ``charted``: a row a song; those of the features that can be read, as float64, and ``rows``, in charts
    of countries; a song without takes no part. ``charts``: a row a country and day; COUNTRY (null: Global), DATE,
    ``rows``. A feature that has no value is left out.
    """
    countries = charts.drop_nulls(COUNTRY).group_by(COUNTRY).agg(pl.col("rows").sum()).sort(COUNTRY).collect()
    days = charts.drop_nulls([COUNTRY, DATE]).select(pl.col(DATE).unique()).collect().to_series()
    rows = charted.select("rows").collect().to_series()
    found = ((feature, *_values(charted, feature)) for feature in FEATURES)
    return {
        "charted_songs": int((rows > 0).sum()),
        "rankings": int(charts.select(pl.col("rows").sum()).collect().item()),
        "rankings_of_countries": int(countries["rows"].sum()),
        "countries": len(countries),
        "days": len(days),
        "first_day": str(days.min()) if len(days) else None,
        "last_day": str(days.max()) if len(days) else None,
        "features": {feature.name: _describe(feature, *values) for feature, *values in found if len(values[0])},
        "country_shares": dict(zip(countries[COUNTRY], countries["rows"] / countries["rows"].sum(), strict=True)),
    }


def shift(charted: pl.LazyFrame, country_shares: Mapping[str, float], reference: Mapping[str, Any]) -> pl.DataFrame:
    """How far the data lies from ``reference``, a profile: a row a quantity (the features, then the countries).

    ``charted`` is the one that ``describe`` takes, ``country_shares`` what it returns. Columns: ``quantity``; ``psi``,
    float64, the population stability index Σ (q − p) ln(q / p) over the reference's bins or over the countries, with
    p the reference's shares and q those of the data (Siddiqi, Credit Risk Scorecards, 2006); ``mean_difference``,
    float64, in standard deviations of the reference, null for the countries.
    """
    rows: list[dict[str, Any]] = []
    for feature in FEATURES:
        known = reference["features"].get(feature.name)
        if known is None:
            continue
        values, weights = _values(charted, feature)
        if len(values):
            difference = float(np.average(values, weights=weights)) - known["mean"]
            shares = _shares(values, weights, np.array(known["edges"]))
            psi = _stability_index(np.array(known["shares"]), shares)
            rows.append({"quantity": feature.name, "psi": psi, "mean_difference": difference / (known["std"] or 1.0)})
    countries = sorted({*country_shares, *reference["country_shares"]})
    before = np.array([reference["country_shares"].get(country, 0.0) for country in countries])
    now = np.array([country_shares.get(country, 0.0) for country in countries])
    rows.append({"quantity": "countries", "psi": _stability_index(before, now), "mean_difference": None})
    return pl.DataFrame(rows, schema={"quantity": pl.String, "psi": pl.Float64, "mean_difference": pl.Float64})


def _values(charted: pl.LazyFrame, feature: Column) -> tuple[Floats, Floats]:
    """The values of a feature that float32, the model's type, can hold, and their weights, float64[songs] both."""
    known = charted.select(feature.name, "rows").collect()
    known = known.filter(pl.col(feature.name).abs() <= LARGEST, pl.col("rows") > 0)
    return known[feature.name].to_numpy(), known["rows"].cast(pl.Float64).to_numpy()


def _describe(feature: Column, values: Floats, weights: Floats) -> dict[str, Any]:
    """Moments and bins of the values, float64[songs], each counted as often as its weight.

    The bins are the deciles, but of equal width over the whole range for a discrete feature, since most of its deciles
    fall together.
    """
    mean = np.average(values, weights=weights)
    if feature.discrete:
        edges = np.linspace(feature.low, feature.high, BINS + 1)
    else:
        order = np.argsort(values)
        passed = np.cumsum(weights[order])
        edges = values[order][np.searchsorted(passed, np.linspace(0, passed[-1], BINS + 1))]
    return {
        "mean": float(mean),
        "std": float(np.sqrt(np.average((values - mean) ** 2, weights=weights))),
        "min": float(values.min()),
        "max": float(values.max()),
        "edges": edges.tolist(),
        "shares": _shares(values, weights, edges).tolist(),
    }


def _shares(values: Floats, weights: Floats, edges: Floats) -> Floats:
    """The share of each bin, float64[edges - 1]; a bin holds its upper edge, the outer ones also what is beyond."""
    # Where edges fall together, the first of their bins takes all: two profiles then put a value in the same bin.
    bins = np.searchsorted(edges[1:-1], values, side="left")
    shares: Floats = np.bincount(bins, weights=weights, minlength=len(edges) - 1) / weights.sum()
    return shares


def _stability_index(before: Floats, now: Floats) -> float:
    p, q = np.maximum(before, SMALLEST_SHARE), np.maximum(now, SMALLEST_SHARE)
    return float(((q - p) * np.log(q / p)).sum())
