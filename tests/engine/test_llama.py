"""The model side alone, in one process: KV that leaves the pools as a block's bytes and comes back is the same KV."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.client import buffers

pytestmark = pytest.mark.engine
pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture
def llama(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; workers import it the same way, from their own folder."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    import llama

    yield llama
    del sys.modules["llama"]


def prompt(count: int, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, 1024, count).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_carry_the_kv_to_the_bit(llama: Any, dtype: str) -> None:
    """Gathered block by block from one engine and scattered into another, the KV gives the same tokens and bits."""
    tokens = prompt(150)
    prefill, decode = llama.Engine(llama.Shape(dtype=dtype)), llama.Engine(llama.Shape(dtype=dtype))
    sent, received = prefill.request(tokens, room=16), decode.request(tokens, room=16)
    first = int(prefill.extend(sent).argmax())
    source = buffers.paged(prefill.pools, sent.table, prefill.layout)
    target = buffers.paged(decode.pools, received.table, decode.layout)
    slot = np.empty(prefill.layout.block_bytes, np.uint8)
    for block, pages in ((0, None), (1, None), (2, 2)):
        source.gather(block, 0, 4, slot, pages)
        target.scatter(block, 0, 4, slot, pages)
    received.length = len(tokens)
    assert decode.digest(received) == prefill.digest(sent)
    assert decode.generate(received, 8, first) == prefill.generate(sent, 8)
    assert decode.digest(received) == prefill.digest(sent)


def test_the_digest_sees_one_bit(llama: Any) -> None:
    """The comparison of KV that the proof stands on notices a single flipped bit."""
    engine = llama.Engine(llama.Shape(layers=1))
    request = engine.request(prompt(20))
    engine.extend(request)
    before = engine.digest(request)
    raw = engine.pools[0][1].view(llama.torch.uint8)
    raw[request.table[1], 3, 0, 0] ^= 1
    assert engine.digest(request) != before


def test_random_weights_say_something(llama: Any) -> None:
    """Greedy tokens are not one token for ever, so that equal tokens mean something."""
    engine = llama.Engine(llama.Shape())
    request = engine.request(prompt(70), room=32)
    engine.extend(request)
    assert len(set(engine.generate(request, 32))) > 10


def test_layers_are_reported_as_they_are_computed(llama: Any) -> None:
    """The hook of a layer runs when its KV is in the pools and that of the next is not."""
    engine = llama.Engine(llama.Shape())
    request = engine.request(prompt(20))
    seen = []

    def layer_done(layer: int) -> None:
        seen.append([not bool(pool[request.table[0]].isnan().any()) for pools in engine.pools for pool in pools])
        assert len(seen) == layer + 1

    engine.extend(request, layer_done)
    assert seen == [[True] * 2 * (i + 1) + [False] * 2 * (3 - i) for i in range(4)]
