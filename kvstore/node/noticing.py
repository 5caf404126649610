"""What a node's parts do, as events for operators."""

from typing import Any

from kvstore.node.catalog import Damaged
from kvstore.node.custody import Custody
from kvstore.node.disks import Disks
from kvstore.node.loadlog import WHOLE, Entry
from kvstore.node.loads import Loads
from kvstore.node.tiers.bank import Bank
from kvstore.observe.events import Kind, Outbox, make_event
from kvstore.pb import node_pb2

_GIVEN_UP = ("CancelledError", "GeneratorExit")
"""Failures of loads that their clients ended, or died over."""


def notice(outbox: Outbox, custody: Custody, loads: Loads, disks: Disks | None) -> None:
    """From now on what happens there waits in the outbox."""

    def note(kind: Kind, text: str, **fields: Any) -> None:
        outbox.add(make_event(kind, text, **fields), custody.clock())

    def damaged(block: Damaged) -> None:
        place = (
            "all tiers" if block.place is None else f"{block.place.tier.name} {block.place.slab_id}/{block.place.slot}"
        )
        text = f"block {block.key.hex()} in {place}: {block.reason}, dropped"
        named = {"namespace_id": block.namespace_id, "key": block.key}
        note(Kind.BLOCK_CORRUPT, text, subject=place, reason=block.reason, count=1, **named)

    def load_ended(entry: Entry) -> None:
        progress = entry.progress
        if progress.outcome == WHOLE or progress.failure in _GIVEN_UP:
            return
        reason = progress.failure or progress.outcome
        text = f"load {entry.number} of {entry.tenant}, {progress.asked_blocks:,} blocks: {reason}"
        fields = {"namespace_id": entry.namespace_id, "count": progress.asked_blocks}
        note(Kind.LOAD_FAILED, text, subject=str(entry.number), reason=reason, **fields)

    def service(bank: Bank) -> None:
        if bank.in_service:
            note(Kind.DEVICE_BACK, f"{bank.path} is in service", subject=str(bank.path))
        else:
            text = f"{bank.path} is out of service: {bank.why_out}"
            note(Kind.DEVICE_OUT, text, subject=str(bank.path), reason=bank.why_out)

    def scrub_ended(scrub: node_pb2.ScrubReply) -> None:
        place, wrong = scrub.path or "all devices", scrub.corrupt_dropped + scrub.unreadable_dropped
        how = "stopped after" if scrub.stopped else "ended:"
        counts = f"{scrub.looked_at:,} blocks, {wrong:,} dropped, {scrub.mended_headers:,} headers mended"
        text = f"scrub of {place} {how} {counts}"
        note(Kind.SCRUB_ENDED, text, subject=scrub.path, reason="stopped" if scrub.stopped else "", count=wrong)

    custody.on_damaged = damaged
    loads.on_ended = load_ended
    if disks is not None:
        disks.on_service = service
        disks.full_scrub.on_ended = scrub_ended
