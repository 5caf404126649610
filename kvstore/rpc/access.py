"""Who may call what, behind a shut door: one table for all services, and the decision. No I/O.

docs/security.md shows the same table. `kvstore.rpc.guard` asks here before anything else is done for a call.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from kvstore.errors import Forbidden, Unauthenticated
from kvstore.rpc.certificates import Role
from kvstore.rpc.tokens import Token


class Right(Enum):
    """What a caller has shown; the value says how it is shown."""

    NODE = "a node's certificate"
    PEER = "a node's certificate with a ticket for transfers"
    CONTROL = "the control plane's certificate"
    HOST = "a unix socket of the same host"
    TENANT = "a tenant's token"
    READ = "an admin's token"
    OPERATE = "an operator's token"
    INSIDE = "the server's own page"
    ANY = "any certificate of the cluster"


_NODES = frozenset({Right.NODE, Right.HOST})
_ENGINES = frozenset({Right.TENANT})
_READERS = frozenset({Right.READ})
_PAGE = _READERS | {Right.INSIDE}
_OPERATORS = frozenset({Right.OPERATE})
_CONTROL = frozenset({Right.CONTROL})
_PEERS = frozenset({Right.PEER})
_ANYBODY = frozenset({Right.ANY})

ACCESS: Mapping[str, frozenset[Right]] = {
    "Control/Register": _NODES,
    "Control/Heartbeat": _NODES,
    "Control/Publish": _NODES,
    "Control/CompareBuckets": _NODES,
    "Control/Holders": _NODES,
    "Control/Match": _ENGINES,
    "Admin/Stats": _PAGE,
    "Admin/Nodes": _PAGE,
    "Admin/Explain": _PAGE,
    "Admin/KeySeed": _PAGE,
    "Admin/PrefixBlocks": _READERS,
    "Admin/GetRules": _READERS,
    "Admin/Pins": _READERS,
    "Admin/GetQuotas": _READERS,
    "Admin/Watch": _PAGE,
    "Admin/ListBlocks": _READERS,
    "Admin/Pin": _OPERATORS,
    "Admin/Unpin": _OPERATORS,
    "Admin/Purge": _OPERATORS,
    "Admin/SetQuota": _OPERATORS,
    "Admin/SetRules": _OPERATORS,
    "Admin/SetDevice": _OPERATORS,
    "Admin/Drain": _OPERATORS,
    "Admin/Adopt": _OPERATORS,
    "Admin/Scrub": _OPERATORS,
    "Admin/SetLogLevel": _OPERATORS,
    "Node/Attach": _ENGINES,
    "Node/OpenNamespace": _ENGINES,
    "Node/LocalMatch": _ENGINES,
    "Node/Reserve": _ENGINES,
    "Node/MarkLayers": _ENGINES,
    "Node/Commit": _ENGINES,
    "Node/Abort": _ENGINES,
    "Node/Hold": _ENGINES,
    "Node/Offer": _ENGINES,
    "Node/Load": _ENGINES,
    "Node/Declined": _ENGINES,
    "Node/Unpin": _ENGINES | _PEERS,
    "Node/Pin": _PEERS,
    "Node/Locate": _PEERS,
    "Node/Transfer": _PEERS,
    "Node/Replicate": _PEERS,
    "Node/Shed": _PEERS,
    "Node/Usage": _READERS | {Right.CONTROL},
    "Node/GetRules": _READERS | {Right.CONTROL},
    "Node/Explain": _READERS | {Right.CONTROL},
    "Node/ListBlocks": _READERS | {Right.CONTROL},
    "Node/OperatorPins": _READERS | {Right.CONTROL},
    "Node/SetRules": _CONTROL,
    "Node/PinForOperator": _CONTROL,
    "Node/UnpinForOperator": _CONTROL,
    "Node/Purge": _CONTROL,
    "Node/SetDevice": _OPERATORS | {Right.CONTROL},
    "Node/Drain": _OPERATORS | {Right.CONTROL},
    "Node/Adopt": _OPERATORS | {Right.CONTROL},
    "Node/Scrub": _OPERATORS | {Right.CONTROL},
    "Node/SetLogLevel": _OPERATORS | {Right.CONTROL},
    "Health/Check": _ANYBODY,
    "Health/Watch": _ANYBODY,
    "ServerReflection/ServerReflectionInfo": _ANYBODY,
}
_BY_TOKEN = frozenset({Right.TENANT, Right.READ, Right.OPERATE})
_ROLES = {Right.NODE: Role.NODE, Right.CONTROL: Role.CONTROL}


@dataclass(frozen=True, slots=True)
class Shown:
    """What a caller has shown.

    local: it came over a unix socket. roles: of its certificate. token: one that holds, or why what it brought does
    not; "" for none. asked: whether clients need tokens here. inside: it is of the server's own process. ticket:
    it is one for transfers that holds.
    """

    local: bool
    roles: Collection[str]
    token: Token | str
    asked: bool
    inside: bool = False
    ticket: bool = False

    @property
    def rights(self) -> frozenset[Right]:
        """Over a unix socket the file's permissions say what a client's certificate says else."""
        rights = {Right.ANY}
        rights |= {Right.HOST} if self.local else set()
        rights |= {Right.INSIDE} if self.inside else set()
        rights |= {right for right, role in _ROLES.items() if role in self.roles}
        rights |= {Right.PEER} if Role.NODE in self.roles and self.ticket else set()
        if self.local or Role.CLIENT in self.roles:
            rights |= self._of_client()
        return frozenset(rights)

    def _of_client(self) -> frozenset[Right]:
        if not self.asked:
            return _BY_TOKEN
        if isinstance(self.token, str):
            return frozenset()
        if self.token.tenant:
            return frozenset({Right.TENANT})
        return frozenset({Right.READ, Right.OPERATE} if self.token.admin == "operate" else {Right.READ})

    @property
    def counted_as(self) -> str:
        """Whose bounds the call counts against; "" for nobody's."""
        if not self.asked or isinstance(self.token, str):
            return ""
        return f"tenant {self.token.tenant!r}" if self.token.tenant else f"the token {self.token.name}"

    @property
    def tenant(self) -> str:
        """The one tenant that the caller may be; "" for any."""
        return self.token.tenant if self.asked and isinstance(self.token, Token) else ""


def expect_allowed(rpc: str, shown: Shown) -> None:
    """Raises Unauthenticated, Forbidden. rpc: service and call (Node/Load)."""
    wanted = ACCESS.get(rpc)
    if wanted is None:
        raise Forbidden(f"{rpc}: nobody may call it, for it has no row in the table of access")
    if wanted & shown.rights:
        return
    needed = " or ".join(right.value for right in Right if right in wanted)
    is_client = shown.local or Role.CLIENT in shown.roles
    if is_client and wanted & _BY_TOKEN and isinstance(shown.token, str):
        why = shown.token or "the call shows none"
        raise Unauthenticated(
            f"{rpc} needs {needed}, and {why}: make one with `kvstore tokens add`, and show it with --token-file,"
            " KVSTORE_TOKEN, or door.token_file"
        )
    if Right.PEER in wanted and Role.NODE in shown.roles:
        raise Unauthenticated(
            f"{rpc} needs {needed}, and the call shows no ticket that holds: a node has one from the control plane"
            " once it is registered, and others believe it once they are"
        )
    raise Forbidden(f"{rpc} needs {needed}; the caller has shown {_said(shown)}")


def _said(shown: Shown) -> str:
    certificate = "a unix socket" if shown.local else f"a certificate of {', '.join(sorted(shown.roles)) or 'nobody'}"
    if isinstance(shown.token, str):
        return certificate
    of = f"tenant {shown.token.tenant!r}" if shown.token.tenant else f"an admin ({shown.token.admin})"
    return f"{certificate}, and the token {shown.token.name} of {of}"
