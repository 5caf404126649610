"""Faults on demand: what a network or a process can do wrong, as switches that are set while it runs."""

import sys
from collections.abc import Callable

ALWAYS = sys.maxsize
"""As a count: from now on."""


class FaultSwitches:
    """Faults of one loopback fabric. The counted ones concern the next messages that it sends, and count down.

    drop: messages that vanish; the sender's future ends well, the receiver waits. (ALWAYS: a one-way drop.)
    corrupt: messages that arrive with one byte inverted.
    delay_s: how long each message takes.
    die_at: counted in operations posted here: at this one the fabric dies as a killed process does. 0: never.
    stalled: nothing goes out or comes in, and nothing ends (a stopped process, a link down); False lets it go on.
    """

    def __init__(self, resume: Callable[[], None]) -> None:
        self.drop = 0
        self.corrupt = 0
        self.delay_s = 0.0
        self.die_at = 0
        self._stalled = False
        self._resume = resume

    @property
    def stalled(self) -> bool:
        return self._stalled

    @stalled.setter
    def stalled(self, stalled: bool) -> None:
        self._stalled = stalled
        if not stalled:
            self._resume()

    def take_drop(self) -> bool:
        """Whether this message vanishes."""
        taken = self.drop > 0
        self.drop -= taken
        return taken

    def take_corrupt(self) -> bool:
        """Whether this message arrives damaged."""
        taken = self.corrupt > 0
        self.corrupt -= taken
        return taken

    def take_death(self) -> bool:
        """Whether the fabric dies with the operation that is being posted."""
        if self.die_at == 0:
            return False
        self.die_at -= 1
        return self.die_at == 0
