"""What `kvstore admin explain` says of a block, in one word: where it is, or why a prompt missed it."""

from enum import StrEnum


class Verdict(StrEnum):
    """docs/admin.md has the same table."""

    HERE = "here"
    NOT_WORTH_LOADING = "not_worth_loading"
    BEHIND_GAP = "behind_gap"
    UNPUBLISHED = "unpublished"
    BEING_WRITTEN = "being_written"
    NODE_DOWN = "node_down"
    EXPIRED = "expired"
    EVICTED = "evicted"
    CORRUPT = "corrupt"
    PURGED = "purged"
    DEVICE_LOST = "device_lost"
    SHED = "shed"
    LEASE_REFUSED = "lease_refused"
    OVER_QUOTA = "over_quota"
    LEASE_LAPSED = "lease_lapsed"
    OTHER_SPLIT = "other_split"
    OTHER_NAMESPACE = "other_namespace"
    GONE = "gone"
    UNKNOWN = "unknown"
    NEVER_STORED = "never_stored"
