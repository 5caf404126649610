"""What the demo found: the sum of all turns, as a table or as JSON."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from kvstore.cli.tables import show, shown_bytes, table


@dataclass(slots=True)
class Moved:
    """Bytes over one path, and the time spent moving them (summed over requests that ran at once)."""

    bytes: int = 0
    seconds: float = 0.0

    @property
    def gb_per_s(self) -> float:
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(slots=True)
class Figures:
    """What one engine did for one turn, or the sum of many. JSON-safe by `dataclasses.asdict`.

    blocks, matched: full blocks of prompts, and those of them that a match found. missing: blocks that were matched and
    then not loaded, by outcome. mismatches: layer blocks whose bytes were not those that their key says.
    """

    blocks: int = 0
    matched: int = 0
    moved: dict[str, Moved] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    verified_bytes: int = 0
    mismatches: int = 0

    def move(self, path: str, count: int, seconds: float) -> None:
        if count:
            moved = self.moved.setdefault(path, Moved())
            moved.bytes += count
            moved.seconds += seconds

    def add(self, other: "Figures") -> None:
        for name in ("blocks", "matched", "verified_bytes", "mismatches"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for path, moved in other.moved.items():
            self.move(path, moved.bytes, moved.seconds)
        self.missing = dict(Counter(self.missing) + Counter(other.missing))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Figures":
        moved = {path: Moved(**values) for path, values in fields.pop("moved").items()}
        return cls(moved=moved, **fields)


@dataclass(slots=True)
class Report:
    """The whole run. violations: of the nodes' conservation laws, asked for at the end."""

    turns: int = 0
    sessions: int = 0
    seconds: float = 0.0
    sum: Figures = field(default_factory=Figures)
    violations: list[str] = field(default_factory=list)

    def turned(self, turn: Figures) -> None:
        self.turns += 1
        self.sum.add(turn)

    def took_over(self, load: Figures) -> None:
        """A conversation loaded by the other side. It is no turn, so it does not count for the hit ratio."""
        self.sum.add(dataclasses.replace(load, blocks=0, matched=0))

    @property
    def hit_ratio(self) -> float:
        return self.sum.matched / self.sum.blocks if self.sum.blocks else 0.0

    @property
    def passed(self) -> bool:
        """Bytes were compared, none was wrong, and every node's slots add up."""
        return self.sum.verified_bytes > 0 and self.sum.mismatches == 0 and not self.violations

    def as_json(self) -> dict[str, Any]:
        """One flat object; the paths with their bytes, seconds and GB/s."""
        paths = {path: {**dataclasses.asdict(m), "gb_per_s": m.gb_per_s} for path, m in self.sum.moved.items()}
        return {
            "turns": self.turns,
            "sessions": self.sessions,
            "seconds": self.seconds,
            "hit_ratio": self.hit_ratio,
            "blocks": self.sum.blocks,
            "matched_blocks": self.sum.matched,
            "paths": paths,
            "missing": self.sum.missing,
            "verified_bytes": self.sum.verified_bytes,
            "mismatches": self.sum.mismatches,
            "violations": self.violations,
        }

    def show(self) -> None:
        verified = shown_bytes(self.sum.verified_bytes)
        numbers = (str(self.turns), str(self.sessions), f"{self.seconds:.1f} s", f"{self.hit_ratio:.1%}", verified)
        paths = (
            (path, shown_bytes(moved.bytes), f"{moved.gb_per_s:.2f}") for path, moved in sorted(self.sum.moved.items())
        )
        show(
            table(
                ("turns", "sessions", "time", "hit ratio", "verified", "mismatches"),
                [(*numbers, str(self.sum.mismatches))],
                title="kvstore demo",
            ),
            table(("path", "bytes", "GB/s of one request"), paths),
            *(f"{count} matched blocks were not loaded: {outcome}" for outcome, count in self.sum.missing.items()),
            *(f"a conservation law is broken: {violation}" for violation in self.violations),
            "Every byte was as its key says." if self.passed else "FAILED: wrong bytes, none at all, or a broken law.",
        )
