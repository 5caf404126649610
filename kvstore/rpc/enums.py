"""Our enums as those of the wire: the numbers are the same, the types are not."""

from typing import cast

from kvstore.blocks.state import Tier
from kvstore.pb import types_pb2


def pb_tier(tier: Tier) -> "types_pb2.Tier.ValueType":
    return cast("types_pb2.Tier.ValueType", int(tier))
