"""Block keys: the prefix property, and which tokens are none."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.blocks.keys import KEY_BYTES, TOKENS_MAX, chain, token_buffer, unpack_keys
from kvstore.errors import InvalidInput

STEP = 4
SEED = bytes(range(KEY_BYTES))

token = st.integers(0, 2**32 - 1)
tokens = st.lists(token, min_size=1, max_size=6 * STEP + 3)
extras = st.dictionaries(st.integers(0, 5), st.binary(min_size=1, max_size=5), max_size=3)


def keys(prompt: Any, extra: Any = b"", seed: bytes = SEED) -> tuple[bytes, ...]:
    return chain(seed, prompt, STEP, extra).keys


@given(tokens, extras)
def test_a_chain_has_a_key_per_full_block(prompt: list[int], extra: dict[int, bytes]) -> None:
    """Full blocks have keys, all different; the tail has none and is counted."""
    made = chain(SEED, prompt, STEP, extra)
    assert len(made) == len(prompt) // STEP == len(set(made.keys))
    assert made.tail_tokens == len(prompt) % STEP
    assert all(len(key) == KEY_BYTES for key in made.keys)


@given(tokens, tokens, tokens)
def test_equal_prefixes_have_equal_keys(prefix: list[int], one: list[int], other: list[int]) -> None:
    """Two prompts share the keys of the full blocks that they have in common, and no key behind them."""
    first, second = prefix + one, prefix + other
    common = 0
    while common < min(len(first), len(second)) and first[common] == second[common]:
        common += 1
    left, right = keys(first), keys(second)
    shared = common // STEP
    assert left[:shared] == right[:shared]
    assert not set(left[shared:]) & set(right[shared:])


@given(tokens.filter(lambda prompt: len(prompt) >= STEP), extras, st.data())
def test_a_changed_token_changes_its_key_and_all_behind_it(
    prompt: list[int], extra: dict[int, bytes], data: st.DataObject
) -> None:
    """One other token anywhere in a full block leaves the keys before that block and no other."""
    place = data.draw(st.integers(0, len(prompt) // STEP * STEP - 1))
    other = data.draw(token.filter(lambda value: value != prompt[place]))
    before, after = keys(prompt, extra), keys([*prompt[:place], other, *prompt[place + 1 :]], extra)
    block = place // STEP
    assert before[:block] == after[:block]
    assert not set(before[block:]) & set(after[block:])


@given(tokens.filter(lambda prompt: len(prompt) >= STEP), extras, st.binary(max_size=5), st.data())
def test_a_changed_extra_changes_its_key_and_all_behind_it(
    prompt: list[int], extra: dict[int, bytes], value: bytes, data: st.DataObject
) -> None:
    """Another extra at a block does what another token in it does; an empty one is none."""
    block = data.draw(st.integers(0, len(prompt) // STEP - 1))
    before, after = keys(prompt, extra), keys(prompt, extra | {block: value})
    if value == extra.get(block, b""):
        assert before == after
    else:
        assert before[:block] == after[:block]
        assert not set(before[block:]) & set(after[block:])


@given(tokens, st.binary(min_size=1, max_size=40))
def test_bytes_as_extra_go_into_the_first_block(prompt: list[int], salt: bytes) -> None:
    """A salt separates whole prompts: it is the extra of block 0."""
    assert keys(prompt, salt) == keys(prompt, {0: salt}) == keys(prompt, bytearray(salt))


@given(tokens, st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES).filter(lambda seed: seed != SEED))
def test_namespaces_share_no_key(prompt: list[int], other: bytes) -> None:
    """The same tokens in another namespace have other keys throughout."""
    assert not set(keys(prompt)) & set(keys(prompt, seed=other))


@given(tokens)
def test_tokens_of_every_integer_type_give_the_same_keys(prompt: list[int]) -> None:
    """Lists and arrays of whatever width and byte order name the same blocks."""
    expected = keys(prompt)
    strided = np.repeat(np.array(prompt, np.uint32), 2)[::2]
    forms = [np.array(prompt, kind) for kind in ("<u4", ">u4", "<i8", ">u8")]
    assert all(keys(form) == expected for form in [*forms, strided, tuple(prompt)])


@given(tokens, st.integers(0, 8))
def test_a_prefix_of_a_chain_is_the_chain_of_the_prefix(prompt: list[int], blocks: int) -> None:
    """Cutting a chain gives what the shorter prompt would have given."""
    made = chain(SEED, prompt, STEP)
    cut = made.prefix(blocks)
    assert cut.keys == made.keys[:blocks]
    if blocks < len(made):
        assert cut == chain(SEED, prompt[: blocks * STEP], STEP) if blocks else cut.tokens == 0
    else:
        assert cut is made


@given(tokens)
def test_packed_keys_unpack(prompt: list[int]) -> None:
    """The packed column of a chain gives its keys back."""
    made = chain(SEED, prompt, STEP)
    assert tuple(unpack_keys(made.packed)) == made.keys


def test_a_torn_column_is_refused() -> None:
    """A column that does not consist of whole keys is no column."""
    with pytest.raises(InvalidInput, match="no multiple of 16"):
        unpack_keys(bytes(17))


def test_a_uint32_array_is_not_copied() -> None:
    """The usual form of tokens costs no copy."""
    prompt = np.arange(10, dtype=np.uint32)
    assert token_buffer(prompt) is prompt


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ([], "non-empty"),
        (np.zeros((2, 4), np.uint32), "one-dimensional"),
        (5, "one-dimensional"),
        ("abcd", "one-dimensional"),
        (None, "one-dimensional"),
        ([[1, 2], [3]], "tokens: "),
        ([1.0, 2.0], "integers are needed, not float64"),
        ([True, False], "integers are needed, not bool"),
        (["1"], "integers are needed"),
        ([1, None], "integers are needed"),
        ([2**64], "integers are needed"),
        ([-1], "within 0"),
        ([1, 2**32], "within 0"),
        (np.array([-1], np.int8), "within 0"),
        (np.zeros(TOKENS_MAX + 1, np.uint8), f"{TOKENS_MAX + 1} are more than {TOKENS_MAX}"),
    ],
)
def test_what_is_no_prompt(bad: Any, text: str) -> None:
    """No tokens, too many, and what is no integer of 32 bits are refused."""
    with pytest.raises(InvalidInput, match=text):
        keys(bad)


def test_the_most_tokens_and_the_largest_token() -> None:
    """The bounds themselves are within."""
    assert token_buffer(np.broadcast_to(np.uint32(2**32 - 1), TOKENS_MAX)).size == TOKENS_MAX
    assert len(keys([2**32 - 1] * STEP)) == 1


@pytest.mark.parametrize("seed", [b"", bytes(15), bytes(17)])
def test_a_namespace_id_has_16_bytes(seed: bytes) -> None:
    """A seed of another length is refused."""
    with pytest.raises(InvalidInput, match="namespace id: 16 bytes"):
        keys([1], seed=seed)


@pytest.mark.parametrize("seed", [bytes(15), bytes(17)])
def test_a_seed_has_16_bytes(seed: bytes) -> None:
    """Where one is given beside the id."""
    with pytest.raises(InvalidInput, match="seed: 16 bytes"):
        chain(SEED, [1], STEP, seed=seed)


@given(tokens)
def test_a_seed_is_in_every_key(prompt: list[int]) -> None:
    """And the id in none, which the chain is of all the same."""
    plain, seeded = chain(SEED, prompt, STEP), chain(SEED, prompt, STEP, seed=bytes(KEY_BYTES))
    assert seeded.namespace_id == SEED
    assert not set(plain.keys) & set(seeded.keys)
    assert seeded.keys == chain(bytes(KEY_BYTES), prompt, STEP).keys
