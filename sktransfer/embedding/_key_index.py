"""Where keys are: an index of sorted arrays.

A dictionary of a million keys takes seconds to fill, and 280 MB.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

KEY_BYTES = 32
# A place is the number of a block, and the position of a key in it.
_ROW_BITS = 32
_NONE = np.empty(0, np.uint64)


class KeyIndex:
    """The places of keys in blocks of keys, which are added and removed as wholes.

    A block is any object whose ``key_bytes`` are its keys, one after the other. The
    same key may be in several blocks, and is found in the last one that was added.

    Keys are sorted by their first eight bytes, in runs. Each run is at least twice as
    long as the next one, or both are merged: there are few of them, and each key is
    merged a few times (O'Neil et al., "The log-structured merge-tree", 1996).
    """

    def __init__(self):
        self._blocks = {}  # number -> block
        self._numbers = {}  # block -> number
        self._added = 0
        self._runs = []  # (starts of keys, places), sorted by starts
        self._count = 0

    def __len__(self):
        """Return the number of different keys."""
        if self._count is None:
            total = sum(len(starts) for starts, _ in self._runs)
            self._count = total - self._n_copies()
        return self._count

    def add(self, blocks: Iterable) -> None:
        """Add the keys of blocks."""
        runs = [(_NONE, _NONE.astype(np.int64))]
        for block in blocks:
            starts = _starts(block.key_bytes)
            rows = np.arange(len(starts), dtype=np.int64)
            runs.append((starts, (self._added << _ROW_BITS) + rows))
            self._blocks[self._added], self._numbers[block] = block, self._added
            self._added += 1
        self._append(*_sorted(*map(np.concatenate, zip(*runs, strict=True))))
        self._count = None

    def remove(self, block) -> None:
        """Remove the keys of a block, except those of other blocks."""
        number = self._numbers.pop(block)
        del self._blocks[number]
        runs, self._runs = self._runs, []
        for starts, places in runs:
            kept = places >> _ROW_BITS != number
            self._append(starts[kept], places[kept])
        self._count = None

    def find(self, keys: Iterable[bytes]) -> dict[bytes, tuple]:
        """Return the block and position of each key; unknown keys are left out."""
        keys = [key for key in keys if len(key) == KEY_BYTES]
        wanted, found = _starts(b"".join(keys)), {}
        for starts, places in reversed(self._runs):
            last = np.searchsorted(starts, wanted, side="right") - 1
            # Where there is none, this is the last one of the run, which is another.
            (there,) = np.nonzero(starts[last] == wanted)
            for i, at in zip(there.tolist(), last[there].tolist(), strict=True):
                if keys[i] not in found:
                    found.update(self._at(keys[i], starts, places, at))
        return found

    def _at(self, key, starts, places, at) -> dict:
        """Return the place of a key, if it is one of those that start as it does."""
        start = starts[at]
        while at >= 0 and starts[at] == start:
            block, row = self._place(places[at])
            if _key(block, row) == key:
                return {key: (block, row)}
            at -= 1
        return {}

    def _place(self, place) -> tuple:
        number, row = divmod(int(place), 1 << _ROW_BITS)
        return self._blocks[number], row

    def _append(self, starts, places) -> None:
        """Add a run, and merge runs until each is twice as long as the next."""
        runs = self._runs
        while runs and len(runs[-1][0]) < 2 * len(starts):
            both = zip(runs.pop(), (starts, places), strict=True)
            starts, places = _sorted(*map(np.concatenate, both))
        if len(starts):
            runs.append((starts, places))

    def _n_copies(self) -> int:
        """Return how often keys occur once more."""
        starts = np.concatenate([_NONE, *(run[0] for run in self._runs)])
        starts.sort(kind="stable")
        several = np.unique(starts[1:][starts[1:] == starts[:-1]])
        alike = defaultdict(list)
        for starts, places in self._runs:
            for at in np.flatnonzero(np.isin(starts, several)).tolist():
                alike[int(starts[at])].append(_key(*self._place(places[at])))
        return sum(len(keys) - len(set(keys)) for keys in alike.values())


def _sorted(starts, places) -> tuple:
    # The stable sort of numpy merges what is sorted already.
    order = np.argsort(starts, kind="stable")
    return starts[order], places[order]


def _starts(key_bytes: bytes) -> np.ndarray:
    """Return the first eight bytes of each key, as numbers."""
    return np.frombuffer(key_bytes, np.uint64)[:: KEY_BYTES // 8].copy()


def _key(block, row: int) -> bytes:
    return block.key_bytes[KEY_BYTES * row : KEY_BYTES * (row + 1)]
