"""The options that describe a testbed, for every command that makes one."""

import argparse

from kvbench.topology import Rates, Topology, cluster


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("testbed")
    group.add_argument(
        "--snic-mbit", type=int, default=500, metavar="N", help="rate of an engine node's SNIC (default: %(default)s)"
    )
    group.add_argument("--helpers", type=int, default=1, metavar="N", help="decode nodes (default: %(default)s)")
    group.add_argument("--prefills", type=int, default=1, metavar="N", help="prefill nodes (default: %(default)s)")
    group.add_argument(
        "--uneven",
        type=weights,
        default=(1,),
        metavar="N:N",
        help="what the SNICs' rates are multiplied by: prefill nodes, then decode nodes; the last holds for the rest",
    )
    group.add_argument("--cnic-mbit", type=int, default=0, metavar="N", help="rate of every CNIC (default: not shaped)")
    group.add_argument(
        "--storage-mbit", type=int, default=0, metavar="N", help="rate of the storage node's NIC (default: not shaped)"
    )


def topology(args: argparse.Namespace) -> Topology:
    """Raises InvalidInput."""
    rates = Rates(args.snic_mbit, args.uneven, args.cnic_mbit, args.storage_mbit)
    return cluster(args.prefills, args.helpers, rates)


def weights(text: str) -> tuple[int, ...]:
    """(1, 3) of "1:3"."""
    return tuple(int(weight) for weight in text.split(":"))
