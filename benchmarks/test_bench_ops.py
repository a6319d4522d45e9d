"""Operators beside their rivals; ``python -m benchmarks.report`` makes a table of the JSON."""

from __future__ import annotations

import pytest

from benchmarks import machine
from benchmarks.cases import Case, Spec
from benchmarks.timing import CLOCK, Series, middle, ratio


def facts(spec: Spec, rival: str, case: Case, series: Series) -> dict:
    """What is kept beside the times."""
    seconds = middle(series, rival)
    kept = {
        "operator": spec.operator,
        "batch": spec.batch,
        "dtype": spec.dtype,
        "layout": spec.layout,
        "device": spec.device,
        "rival": rival,
        "milliseconds": 1e3 * seconds,
        "times_ours": ratio(series, rival, "ours"),
        "share_of_limit": ratio(series, "limit", rival),
        "gigabytes_per_second": case.traffic / seconds / 1e9,
        "results_checked": case.rivals[rival].result is not None,
        "machine": machine.describe(spec.device),
    }
    if "copy" in series:
        kept["share_of_copy_bandwidth"] = ratio(series, "copy", rival) * case.traffic / case.copy_traffic
    return kept


@pytest.mark.benchmark(timer=CLOCK.read)
def test_operator(spec, rival, measured, benchmark):
    case, series = measured(spec)
    if rival not in series:
        pytest.skip(f"{rival} does not run here, see the warnings")
    benchmark.group = str(spec)
    benchmark.extra_info.update(facts(spec, rival, case, series))
    CLOCK.load(series[rival])
    benchmark.pedantic(lambda: None, rounds=len(series[rival]))
