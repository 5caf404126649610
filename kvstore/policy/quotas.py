"""What a tenant may hold: bytes of slots per tier, on each node by itself. Pure."""

from collections.abc import Mapping
from typing import NamedTuple

from kvstore.blocks.state import Tier
from kvstore.errors import InvalidInput

TENANT_CHARACTERS_MAX = 255
QUOTA_BYTES_MAX = 2**62
FIELDS: Mapping[str, Tier] = {"dram_bytes": Tier.DRAM, "nvme_bytes": Tier.NVME}
"""As they are called on the wire and in messages to people."""
Quota = Mapping[Tier, int]


class Share(NamedTuple):
    """How many of the slots that are wanted a quota lets be taken now, and how many must be given up for the rest."""

    allowed: int
    lacking: int


def share(quota_bytes: int, used_bytes: int, slot_bytes: int, wanted: int) -> Share:
    """Of slots of one size."""
    allowed = min(wanted, max(0, quota_bytes - used_bytes) // slot_bytes)
    return Share(allowed, wanted - allowed)


def check_tenant(tenant: str) -> None:
    """Raises InvalidInput for what is no tenant's name."""
    if not 0 < len(tenant) <= TENANT_CHARACTERS_MAX or "\0" in tenant:
        raise InvalidInput(f"a tenant has 1 to {TENANT_CHARACTERS_MAX} characters, and no NUL: {tenant[:40]!r}")


def quota_of(fields: Mapping[str, int]) -> dict[Tier, int]:
    """By tier; a tier that is not named has none. Raises InvalidInput for a size that cannot be meant."""
    for name, length in fields.items():
        if not 0 <= length <= QUOTA_BYTES_MAX:
            raise InvalidInput(f"{name}: {length} is not from 0 to {QUOTA_BYTES_MAX}")
    return {FIELDS[name]: length for name, length in fields.items()}
