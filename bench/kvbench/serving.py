"""Serves a workload with engines that are there, in real time, and says what each request took."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from kvbench.slo import Attainment, Served, Slo, misses_allowed
from kvbench.workload import Prompt, Session, Turn, Workload
from kvstore.cli.demo_cluster import Engine
from kvstore.errors import KVStoreError

_POLL_S = 0.1


@dataclass(slots=True)
class Side:
    """An engine of one role. node_id: of its node. outstanding: requests that it has now."""

    engine: Engine
    node_id: str
    outstanding: int = 0


@dataclass(frozen=True, slots=True)
class Way:
    """How a history reaches the prefill engine. history: loaded, free (it costs nothing) or none (computed again).

    kept: a decode node keeps what it relays for the handoff.
    """

    name: str
    history: str
    kept: bool = False


@dataclass(slots=True)
class Trial:
    """One rate, and what came of it. skip_s: requests before it are served and not counted; end_s: none come from then
    on. to_end: it is not given up, however many miss."""

    workload: Workload
    slo: Slo
    skip_s: float
    end_s: float
    to_end: bool = False
    served: list[Served] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)
    """When each request came that has no first token yet."""
    missed: int = 0
    given_up: bool = False
    late: int = 0
    """Requests that waited longer than the objective when it was given up."""

    @property
    def planned(self) -> int:
        """Requests that will be counted, if all goes on as it should."""
        share = (self.end_s - self.skip_s) / self.end_s if math.isfinite(self.end_s) else 1.0
        return max(1, round(self.workload.requests * share))

    def lost(self, now_s: float) -> bool:
        """Whether so many have missed their objective already that the rest cannot make up for it."""
        if self.to_end:
            return False
        return self.missed + self._late(now_s) > misses_allowed(self.planned)

    def give_up(self, now_s: float) -> None:
        self.given_up, self.late = True, self._late(now_s)

    def _late(self, now_s: float) -> int:
        return sum(now_s - came > self.slo.ttft_s for came in self.waiting.values())

    def tell(self, one: Served) -> None:
        self.served.append(one)
        self.missed += not one.meets(self.slo)

    def attainment(self, rate: float) -> Attainment:
        """Of a workload that was drawn at this rate."""
        seconds = self.end_s - self.skip_s
        whole = math.isfinite(seconds) and not self.given_up
        arrived_per_s = len(self.served) / seconds if whole else rate
        counted, met = len(self.served) + self.late, len(self.served) - self.missed
        return Attainment(rate, arrived_per_s, counted, met, self.given_up)


class Server:
    """Prefill and decode engines, by the requests that each has: the one with the fewest gets the next."""

    def __init__(self, prefills: Sequence[Side], decodes: Sequence[Side], way: Way) -> None:
        self._prefills = prefills
        self._decodes = decodes
        self._way = way
        self._numbers = count()

    async def serve(self, trial: Trial) -> None:
        """All of a workload, or until it is lost; then everything is given up, and has ended when this returns."""
        began_s = time.monotonic() + _POLL_S
        sessions = [asyncio.create_task(self._session(session, began_s, trial)) for session in trial.workload.sessions]
        waiting = set(sessions)
        try:
            while waiting and not trial.given_up:
                ended, waiting = await asyncio.wait(waiting, timeout=_POLL_S)
                for session in ended:
                    session.result()
                if trial.lost(now_s := time.monotonic()):
                    trial.give_up(now_s)
        finally:
            for session in sessions:
                session.cancel()
            await asyncio.gather(*sessions, return_exceptions=True)
            for side in (*self._prefills, *self._decodes):
                if trial.given_up:
                    side.outstanding = 0
                    await side.engine.call("give_up")

    async def _session(self, session: Session, began_s: float, trial: Trial) -> None:
        prompt, arrives_s = session.history, began_s + session.at_s
        for turn in session.turns:
            prompt = prompt.then(*turn.appended)
            if arrives_s - began_s >= trial.end_s:
                return
            await asyncio.sleep(arrives_s - time.monotonic())
            number = next(self._numbers)
            counted = arrives_s - began_s >= trial.skip_s
            if counted:
                trial.waiting[number] = arrives_s
            one = await self._request(number, prompt, turn, arrives_s, trial)
            trial.waiting.pop(number, None)
            if counted:
                trial.tell(one)
            if one.failed:
                return
            prompt, arrives_s = prompt.then(turn.answer), one.last_s + trial.workload.gap_s

    async def _request(self, number: int, prompt: Prompt, turn: Turn, arrived_s: float, trial: Trial) -> Served:
        prefill = min(self._prefills, key=lambda side: side.outstanding)
        decode = min(self._decodes, key=lambda side: side.outstanding)
        prefill.outstanding += 1
        decode.outstanding += 1
        try:
            return await self._served(str(number), prompt, turn, arrived_s, prefill, decode, trial)
        except KVStoreError as error:
            return Served(arrived_s, prompt_tokens=prompt.tokens, failed=str(error))
        finally:
            if not trial.given_up:
                prefill.outstanding -= 1
                decode.outstanding -= 1

    async def _served(
        self, name: str, prompt: Prompt, turn: Turn, arrived_s: float, prefill: Side, decode: Side, trial: Trial
    ) -> Served:
        asked = prompt.to_json()
        admitted = await prefill.engine.call("admit", name=name, prompt=asked, history=self._way.history)
        handed = {"prompt": asked, "skipped": str(admitted["skipped"]), "answer": Prompt((turn.answer,)).to_json()}
        decoding = asyncio.create_task(decode.engine.call("decode", ticket=admitted["ticket"], **handed))
        try:
            keep_at = decode.node_id if self._way.kept else ""
            first = await prefill.engine.call("prefill", name=name, keep_at=keep_at)
            trial.waiting.pop(int(name), None)
            rest = await decoding
        finally:
            decoding.cancel()
        return Served(
            arrived_s=arrived_s,
            first_s=first["first_s"],
            second_s=rest["second_s"],
            last_s=rest["last_s"],
            generated=turn.answer.count,
            prompt_tokens=prompt.tokens,
            hit_tokens=first["hit_tokens"],
            sources={(tier, route): count for tier, route, count in first["sources"]},
        )
