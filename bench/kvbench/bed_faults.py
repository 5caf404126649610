"""What happens to a helper in the middle of a load, and what the best possible load would make of it."""

import argparse
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from kvbench.bed_cluster import Engines
from kvbench.testbed import Testbed
from kvbench.topology import COMPUTE, STORAGE, Host

_OPTIONS = {
    "--kill-helper": ("kill", "its process"),
    "--stop-helper": ("stop", "its process, with SIGSTOP"),
    "--link-down": ("link-down", "its compute NIC"),
}
_THROTTLE = re.compile(r"(\d+(?:\.\d+)?)%@(\d+(?:\.\d+)?)%")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True, slots=True)
class Fault:
    """at: the part of the bytes that have come by then. share: of its rate that the helper's SNIC keeps."""

    kind: str
    at: float
    share: float = 0.0

    async def strike(self, bed: Testbed, engines: Engines, helper: Host) -> None:
        process = engines.nodes[helper.name].process
        if self.kind == "throttle":
            await bed.shape(helper, STORAGE, helper.nic(STORAGE).mbit * self.share)
        elif self.kind == "link-down":
            await bed.link_down(helper, COMPUTE)
        else:
            process.send_signal(signal.SIGKILL if self.kind == "kill" else signal.SIGSTOP)

    async def undo(self, bed: Testbed, engines: Engines, helper: Host) -> None:
        """What was killed stays so: the nodes are started anew for the next load."""
        if self.kind == "throttle":
            await bed.shape(helper, STORAGE, helper.nic(STORAGE).mbit)
        elif self.kind == "link-down":
            await bed.link_up(helper, COMPUTE)
        elif self.kind == "stop":
            engines.nodes[helper.name].process.send_signal(signal.SIGCONT)


def optimum_s(count_bytes: int, bytes_per_s: Mapping[str, float], helper: str, fault: Fault | None) -> float:
    """Seconds of a load that uses every NIC to the full at every moment, as a fluid would.

    bytes_per_s: what each NIC carries. helper: the one that the fault changes.
    """
    before = sum(bytes_per_s.values())
    if fault is None:
        return count_bytes / before
    after = before - bytes_per_s[helper] * (1 - fault.share)
    return count_bytes * (fault.at / before + (1 - fault.at) / after)


def percent(text: str) -> float:
    """0.5 of "50%"."""
    if not (found := _PERCENT.fullmatch(text)) or not 0 < float(found[1]) < 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentage between 0% and 100%")
    return float(found[1]) / 100


def throttle(text: str) -> Fault:
    """Of "5%@50%": to 5 % of its rate, when half of the bytes have come."""
    if not (found := _THROTTLE.fullmatch(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 5%@50%")
    return Fault("throttle", percent(f"{found[2]}%"), percent(f"{found[1]}%"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One fault at most: `fault`."""
    group = parser.add_argument_group("fault of the first helper, during the load").add_mutually_exclusive_group()
    group.add_argument(
        "--throttle-helper", dest="fault", type=throttle, metavar="SHARE@AT", help="its storage NIC: 5%%@50%%"
    )
    for name, (kind, what) in _OPTIONS.items():
        group.add_argument(
            name,
            dest="fault",
            type=partial(_at, kind),
            nargs="?",
            const=Fault(kind, 0.5),
            metavar="AT",
            help=f"{what}, when so much has come (default: 50%%)",
        )


def _at(kind: str, text: str) -> Fault:
    return Fault(kind, percent(text))
