"""Both ends of a connection agree on when it is a new one."""

from kvstore.fabric.loopback import LoopbackFabric, LoopbackPeer
from kvstore.node.connections import Connections


async def test_loads_that_share_a_connection_give_it_up_once() -> None:
    """The count rises once per connection, and per owner."""
    here, there = LoopbackFabric(), LoopbackFabric()
    connections = Connections()
    first = here.connect(there.address)
    connections.give_up("owner:1", first)
    connections.give_up("owner:1", first)
    assert (connections.number("owner:1"), connections.number("owner:2")) == (1, 0)

    await first.close()
    connections.give_up("owner:1", here.connect(there.address))
    assert connections.number("owner:1") == 2
    await here.close()
    await there.close()


async def test_owner_makes_a_fresh_connection_for_a_higher_count_alone() -> None:
    """Transfers with one count share a connection; a higher one closes it, and a late lower one changes nothing."""
    here, there = LoopbackFabric(), LoopbackFabric()
    connections = Connections()
    first = await connections.to_reader(here, there.address, 0)
    assert await connections.to_reader(here, there.address, 0) is first

    second = await connections.to_reader(here, there.address, 1)
    assert (first.alive, second.alive) == (False, True)
    assert await connections.to_reader(here, there.address, 0) is second
    assert await connections.to_reader(here, there.address, 1) is second
    await here.close()
    await there.close()


async def test_a_connection_that_the_owner_had_ended_itself_is_made_once() -> None:
    """The reader gave up what is gone here already: the next one is not closed in the moment of being made."""
    made = 0

    class Counted(LoopbackFabric):
        def connect(self, address: bytes) -> LoopbackPeer:
            nonlocal made
            made += address not in self._peers
            return super().connect(address)

    here, there = Counted(), LoopbackFabric()
    connections = Connections()
    first = await connections.to_reader(here, there.address, 0)
    await first.close()
    second = await connections.to_reader(here, there.address, 1)
    assert (first.alive, second.alive, made) == (False, True, 2)
    await here.close()
    await there.close()
