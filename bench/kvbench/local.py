"""Client and node on one host: `store` and `load` of contiguous buffers, beside memcpy of the same bytes.

Every store and every load is measured right after a memcpy, so that what disturbs the machine disturbs both; a ratio is
the median over rounds of the ratio to that memcpy. One thread copies in each.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from kvbench import noise, options, progress, result
from kvbench.result import Result
from kvbench.yardsticks import MEMCPY, MEMCPY_XXH3
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.cli.spawn import server
from kvstore.client import AsyncClient, buffers
from kvstore.config import ClientConfig
from kvstore.errors import InvalidInput, KVStoreError

Bytes = npt.NDArray[np.uint8]
_WARM_UP_ROUNDS = 3  # the tier holds two rounds: after these every slot has been touched, and is reused


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bytes(parser, "256MiB")
    options.add_sizes(parser, "4MiB")
    options.add_rounds(parser, 9)
    options.add_seed(parser)


def run(args: argparse.Namespace) -> Result:
    options.check_sizes(args.sizes, 4096)
    options.check_positive(rounds=args.rounds)
    layouts = options.layouts(args.sizes, args.model)
    if args.bytes < max(layouts):
        raise InvalidInput(f"--bytes must be one block of {max(layouts)} bytes at least")
    measured = {
        size_bytes: asyncio.run(_measure(layout, args.bytes // size_bytes, args.rounds, args.seed))
        for size_bytes, layout in layouts.items()
    }
    return result.of_this_machine(
        "local",
        settings={
            "bytes": args.bytes,
            "rounds": args.rounds,
            "warm_up": _WARM_UP_ROUNDS,
            "threads": 1,
            "seed": args.seed,
        },
        keys=("path", "block_bytes"),
        measurements=[row for size_bytes, rounds in measured.items() for row in _rows(rounds, args.bytes, size_bytes)],
        ratios=_ratios(measured[max(measured)]),
    )


class Timed(NamedTuple):
    """Seconds of one call, and of the memcpy right before it."""

    seconds: float
    memcpy: float

    @property
    def ratio(self) -> float:
        return self.memcpy / self.seconds


@dataclass(frozen=True, slots=True)
class Round:
    """One round. store, load: checksums off, on."""

    memcpy_xxh3: Timed
    store: tuple[Timed, Timed]
    load: tuple[Timed, Timed]


def _ratios(rounds: list[Round]) -> dict[str, float]:
    ratios: dict[str, float] = {}
    for suffix, checked in (("", False), ("_checked", True)):
        store = statistics.median(each.store[checked].ratio for each in rounds)
        load = statistics.median(each.load[checked].ratio for each in rounds)
        ratios |= {
            f"vs_memcpy{suffix}": min(store, load),
            f"vs_memcpy{suffix}_store": store,
            f"vs_memcpy{suffix}_load": load,
        }
    return ratios


def _rows(rounds: list[Round], asked_bytes: int, block_bytes: int) -> list[dict[str, Any]]:
    paths: dict[str, Callable[[Round], Timed]] = {
        MEMCPY_XXH3: lambda each: each.memcpy_xxh3,
        "store": lambda each: each.store[False],
        "store, checksums": lambda each: each.store[True],
        "load": lambda each: each.load[False],
        "load, checksums": lambda each: each.load[True],
    }
    count_bytes = asked_bytes // block_bytes * block_bytes
    rows = [_row(MEMCPY, block_bytes, [count_bytes / path(each).memcpy for each in rounds for path in paths.values()])]
    return rows + [
        _row(name, block_bytes, [count_bytes / path(each).seconds for each in rounds]) for name, path in paths.items()
    ]


def _row(name: str, block_bytes: int, bytes_per_s: list[float]) -> dict[str, Any]:
    return {"path": name, "block_bytes": block_bytes, "gb_per_s": noise.summary([rate / 1e9 for rate in bytes_per_s])}


async def _measure(layout: Layout, blocks: int, rounds_wanted: int, seed: int) -> list[Round]:
    total_bytes = blocks * layout.block_bytes
    capacity = ("--dram-bytes", str(2 * total_bytes), "--slab-bytes", str(total_bytes))
    async with server("serve", "--log-level", "warning", *capacity) as said:
        bench = _Bench(layout, blocks, seed)
        namespace = Namespace.of("kvbench-local", layout)
        connect = [
            AsyncClient.connect(
                node=said["socket"], namespace=namespace, layout=layout, config=ClientConfig(verify=verify)
            )
            for verify in (False, True)
        ]
        plain, checked = [await each for each in connect]
        rounds = []
        async with plain, checked:
            count_rounds = _WARM_UP_ROUNDS + rounds_wanted
            for _ in progress.track(range(count_rounds), "local", count_rounds):
                rounds.append(await bench.round(plain, checked))
    return rounds[_WARM_UP_ROUNDS:]


class _Bench:
    """The engine's buffers, one to store from and one to load into, and tokens that no round has seen."""

    def __init__(self, layout: Layout, blocks: int, seed: int) -> None:
        self._layout = layout
        self._seed = seed
        self._source = np.random.default_rng(seed).integers(0, 256, (blocks, layout.block_bytes), np.uint8)
        self._target = np.ones_like(self._source)
        self._prompts = self._fresh_prompts(blocks * layout.block_tokens)

    async def round(self, plain: AsyncClient, checked: AsyncClient) -> Round:
        memcpy = self._memcpy()
        began = time.perf_counter()
        self._copy_and_hash()
        hashed = Timed(time.perf_counter() - began, memcpy)
        off = await self._store_and_load(plain)
        on = await self._store_and_load(checked)
        return Round(hashed, (off[0], on[0]), (off[1], on[1]))

    async def _store_and_load(self, client: AsyncClient) -> tuple[Timed, Timed]:
        chain = client.chain(next(self._prompts))
        memcpy = self._memcpy()
        began = time.perf_counter()
        stored = await client.store(chain, buffers.contiguous(self._source, self._layout))
        store = Timed(time.perf_counter() - began, memcpy)
        if stored.stored != len(chain):
            raise KVStoreError(f"only {stored.stored} of {len(chain)} blocks were stored: {stored}")
        memcpy = self._memcpy()
        self._target[:, ::4096] ^= 0xFF  # so that only what the load writes is equal below
        began = time.perf_counter()
        loaded = await client.load(chain, buffers.contiguous(self._target, self._layout)).result()
        load = Timed(time.perf_counter() - began, memcpy)
        if loaded.blocks != len(chain) or not np.array_equal(self._target, self._source):
            raise KVStoreError(f"what was loaded is not what was stored: {loaded}")
        return store, load

    def _memcpy(self) -> float:
        began = time.perf_counter()
        np.copyto(self._target, self._source)
        return time.perf_counter() - began

    def _copy_and_hash(self) -> None:
        step = self._layout.granule_bytes
        for block, target in zip(self._source, self._target, strict=True):
            for start in range(0, len(block), step):
                np.copyto(target[start : start + step], block[start : start + step])
                xxhash.xxh3_64_digest(target[start : start + step])

    def _fresh_prompts(self, tokens: int) -> Iterator[npt.NDArray[np.uint32]]:
        for number in count():
            yield np.random.default_rng((self._seed, number)).integers(0, 2**32, tokens, dtype=np.uint32)
