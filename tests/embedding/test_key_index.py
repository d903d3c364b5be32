"""The index of keys finds what a dictionary of all keys would find."""

import hashlib
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sktransfer.embedding._key_index import KeyIndex


def digest(number):
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def similar(number):
    """A key of which only the last bytes tell it apart from some of the others."""
    return (number % 3).to_bytes(8, "big") + number.to_bytes(24, "big")


def block_of(keys):
    return SimpleBlock(key_bytes=b"".join(keys))


class SimpleBlock(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.mark.parametrize("key", [digest, similar])
@given(
    steps=st.lists(st.lists(st.integers(0, 30), unique=True) | st.integers(0, 8)),
)
@settings(deadline=None)
def test_keys_are_found_in_the_last_block_that_has_them(key, steps):
    index, blocks = KeyIndex(), []
    for step in steps:
        # A list of numbers is a block to add, a number one to remove.
        if isinstance(step, list):
            blocks.append(block_of(map(key, step)))
            index.add([blocks[-1]])
        elif step < len(blocks):
            index.remove(blocks.pop(step))
        expected = {
            block.key_bytes[at : at + 32]: (block, at // 32)
            for block in blocks
            for at in range(0, len(block.key_bytes), 32)
        }
        assert index.find(map(key, range(40))) == expected
        assert len(index) == len(expected)


def test_keys_of_another_length_are_unknown():
    index = KeyIndex()
    index.add([block_of([digest(0)])])
    assert index.find([digest(0)[:-1], b"", digest(0)]).keys() == {digest(0)}
    assert index.find([]) == {}


def test_blocks_are_added_at_once():
    first, second = (block_of(map(digest, range(at, at + 5))) for at in (0, 3))
    index = KeyIndex()
    index.add([first, second, block_of([])])
    index.add([])
    places = index.find(map(digest, range(8)))
    assert [places[digest(i)] for i in (2, 3, 7)] == [
        (first, 2),
        (second, 0),
        (second, 4),
    ]
    assert len(index) == 8


def test_few_runs_are_searched():
    index = KeyIndex()
    for first in range(0, 3000, 30):
        index.add([block_of(map(digest, range(first, first + 30)))])
    lengths = [len(starts) for starts, _ in index._runs]
    assert sum(lengths) == len(index) == 3000
    assert len(lengths) < 8
    assert all(a >= 2 * b for a, b in zip(lengths, lengths[1:], strict=False))
