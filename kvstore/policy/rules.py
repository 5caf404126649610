"""What is kept of a namespace's blocks: for how long, how often, in which form.

Rules travel as plain fields (`to_fields`, `changed`): in TOML, on the wire, in the NVMe tier's manifest, in the control
plane's index. A source that names only some of them leaves the others as they are, so the sources lie over one another:

    node's default ── its file ── what the client asks for ── what an operator has set at run time
"""

import difflib
import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kvstore.config import NodeConfig
from kvstore.errors import InvalidInput
from kvstore.policy.ttl import TtlKind, TtlRule

COPIES_MAX = 16
TTL_MS_MAX = 2**40
"""More than thirty years: any number of milliseconds up to it fits everywhere in nanoseconds."""
BOUNDS = frozenset({"ttl_ms_min", "ttl_ms_max"})
_NS_PER_MS = 1_000_000

E = TypeVar("E", bound=enum.Enum)


class Compression(enum.Enum):
    """Of blocks on NVMe. SHUFFLE: bytes of equal rank side by side, then zstd; for floating-point KV."""

    OFF = "off"
    ZSTD = "zstd"
    SHUFFLE = "shuffle"


@dataclass(frozen=True, slots=True)
class NamespaceRules:
    """The rules of one namespace.

    ttl: how long its blocks live. probe_extends: a match without a load is a touch too. copies: nodes that each block
    is to be on. compression: on NVMe.
    """

    ttl: TtlRule
    probe_extends: bool = False
    copies: int = 1
    compression: Compression = Compression.OFF

    def __post_init__(self) -> None:
        if not 1 <= self.copies <= COPIES_MAX:
            raise InvalidInput(f"copies: {self.copies} is not from 1 to {COPIES_MAX}")

    def to_fields(self) -> dict[str, Any]:
        """All of them, JSON-safe; times in milliseconds, rounded up."""
        return {
            "ttl_kind": self.ttl.kind.value,
            "ttl_ms": _ms(self.ttl.ttl_ns),
            "ttl_ms_min": _ms(self.ttl.ttl_ns_min),
            "ttl_ms_max": _ms(self.ttl.ttl_ns_max),
            "probe_extends": self.probe_extends,
            "copies": self.copies,
            "compression": self.compression.value,
        }

    def changed(self, fields: Mapping[str, Any]) -> "NamespaceRules":
        """These rules with some fields changed. Raises InvalidInput for an unknown name, with the nearest known one,
        and for a value that cannot be meant."""
        whole = self.to_fields()
        for name, value in fields.items():
            if name not in whole:
                near = difflib.get_close_matches(name, whole, n=1)
                raise InvalidInput(f"unknown rule {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))
            if type(value) is not type(whole[name]):
                raise InvalidInput(f"{name}: {type(whole[name]).__name__} is needed, not {value!r}")
            if name.startswith("ttl_ms") and not 0 <= value <= TTL_MS_MAX:
                raise InvalidInput(f"{name}: {value} is not from 0 to {TTL_MS_MAX}")
        return replace(self, **_values(self.ttl, fields))

    @staticmethod
    def of_node(config: NodeConfig) -> "NamespaceRules":
        """What holds on a node where nothing else is said."""
        return NamespaceRules.from_fields({"ttl_ms": config.ttl_ms})

    @staticmethod
    def from_fields(fields: Mapping[str, Any]) -> "NamespaceRules":
        """The default rules with some fields changed. Raises InvalidInput as `changed` does."""
        return DEFAULT_RULES.changed(fields)


def _values(ttl: TtlRule, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What changes of a NamespaceRules."""
    values = {name: value for name, value in fields.items() if not name.startswith("ttl_")}
    if "compression" in values:
        values["compression"] = _member(Compression, "compression", values["compression"])
    times = {name.replace("_ms", "_ns"): value * _NS_PER_MS for name, value in fields.items() if "_ms" in name}
    kind = _member(TtlKind, "ttl_kind", fields["ttl_kind"]) if "ttl_kind" in fields else ttl.kind
    return {**values, "ttl": replace(ttl, kind=kind, **times)}


def _member(kind: type[E], name: str, value: str) -> E:
    known = [member.value for member in kind]
    if value not in known:
        raise InvalidInput(f"{name}: {value!r} is none of {', '.join(known)}")
    return kind(value)


def _ms(duration_ns: int) -> int:
    return -(-duration_ns // _NS_PER_MS)


DEFAULT_RULES = NamespaceRules(TtlRule(TtlKind.SLIDING, NodeConfig().ttl_ms * _NS_PER_MS))
