"""Runs what benches that serve requests have planned, and makes their result."""

import argparse
import asyncio
import os
from typing import Any

from kvbench import progress, result, serving_options, serving_result, serving_run, testbed
from kvbench.result import Result
from kvbench.serving_options import Estimate, Scaled
from kvbench.serving_run import Plan

_TRIALS = 4
"""Of the search for one way's rate, for the bar."""


def run(bench: str, args: argparse.Namespace, plan: Plan, scale: Scaled, guess: Estimate, **settings: Any) -> Result:
    """Serves the plan by all ways. settings: of this bench alone, beside those of `serving_options`."""
    testbed.require()
    with progress.bar(bench, len(args.ways) * (len(plan.rates) or _TRIALS)) as shown:
        found = asyncio.run(serving_run.measure(plan, args.ways, shown))
    return result.of_this_machine(
        bench,
        settings={**settings, **serving_options.settings(args, scale, guess)},
        keys=("way",),
        measurements=[serving_result.row(each) for each in found],
        ratios=serving_result.ratios(found),
        warnings=tuple(serving_result.warnings(found, len(os.sched_getaffinity(0)))),
    )
