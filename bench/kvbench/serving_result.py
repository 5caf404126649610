"""What a search for goodput says: its measurements, ratios and warnings."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from kvbench.serving_run import Found, Tried
from kvbench.slo import hits, latencies

_CORES_PART = 0.8
"""Of the machine's: when more are busy, they may be what limits."""
_SHARES = ("p50", "p90", "p99")


def row(found: Found) -> dict[str, Any]:
    """A way's measurement: its goodput, what requests took at it, and every rate that was tried. Where no rate was good
    enough its goodput is 0, and the rest is of the lowest."""
    best = found.best
    spread = latencies(best.served)
    return {
        "way": found.way,
        "goodput_per_s": found.goodput,
        "requests": best.attainment.requests,
        "attained": best.attainment.share,
        **{name: value for name, value in hits(best.served).items() if name != "loaded_bytes"},
        **{_figure(name, share): spread[name][share] for name in spread for share in _SHARES},
        "cores": best.cores,
        "curves": {name: spread[name]["cdf"] for name in spread},
        "tried": [_trial(each) for each in sorted(found.tried, key=lambda each: each.attainment.rate)],
    }


def _figure(name: str, share: str) -> str:
    """ttft_p90_s"""
    return f"{name.removesuffix('_token_s').removesuffix('_s')}_{share}_s"


def _trial(tried: Tried) -> dict[str, Any]:
    """failed: why, and how many."""
    at = tried.attainment
    spread = latencies(tried.served)
    return {
        "rate": at.rate,
        "arrived_per_s": at.arrived_per_s,
        "attained": at.share,
        "requests": at.requests,
        "given_up": at.early,
        "failed": dict(Counter(one.failed for one in tried.served if one.failed)),
        **{_figure(name, "p90"): spread[name]["p90"] for name in spread},
        "loaded_bytes": hits(tried.served)["loaded_bytes"],
        "own_snic_share": tried.own_snic_share,
        "all_snic_share": tried.all_snic_share,
        "cores": tried.cores,
    }


def ratios(found: Sequence[Found]) -> dict[str, float]:
    """Of the ways' goodputs, as far as both were measured and neither is 0."""
    of = {each.way: each.goodput for each in found}
    pairs = {
        "dual_vs_single": ("dual path", "single path"),
        "oracle_vs_single": ("oracle", "single path"),
        "dual_of_oracle": ("dual path", "oracle"),
        "single_vs_no_cache": ("single path", "no cache"),
    }
    return {name: of[one] / of[other] for name, (one, other) in pairs.items() if of.get(one) and of.get(other)}


def warnings(found: Sequence[Found], cores: int) -> list[str]:
    """Where something else than the way was the limit."""
    said = []
    for each in found:
        if not each.goodput:
            said.append(f"{each.way}: not even the lowest rate that was tried was served well enough")
        elif not each.bounded:
            said.append(f"{each.way}: no rate that was tried was too high: the goodput is at least this")
        if each.best.cores > _CORES_PART * cores:
            said.append(f"{each.way}: {each.best.cores:.1f} of {cores} cores were busy: they may have been the limit")
        if failed := sum(bool(one.failed) for trial in each.tried for one in trial.served):
            reason = next(one.failed for trial in each.tried for one in trial.served if one.failed)
            said.append(f"{each.way}: {failed} requests failed, as: {reason}")
    return said
