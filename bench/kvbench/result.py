"""What a bench returns: one object for programs (`--json`), and the source of the table for people."""

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one bench.

    `results` has one dict per measured point, all JSON-safe; `ratios` compares with what the machine can do;
    `extras` (latencies such as `p50_ms`) stand at the top level of the JSON.
    """

    bench: str
    config: dict[str, Any]
    machine: dict[str, Any]
    results: list[dict[str, Any]]
    ratios: dict[str, float]
    extras: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object."""
        fields = {
            "bench": self.bench,
            "config": self.config,
            "machine": self.machine,
            "results": self.results,
            "ratios": self.ratios,
        }
        clash = fields.keys() & self.extras.keys()
        assert not clash, f"extras hide fields: {clash}"
        return json.dumps(fields | self.extras)
