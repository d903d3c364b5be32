"""Leaks: test samples that have a copy in the training set of their fold."""

import numpy as np

from sktransfer._tables import Table
from sktransfer.embedding._duplicates import NEAR, Copies


def find_leaks(copies: Copies, folds) -> Table:
    """Return a row for each test sample that has a copy in the training set."""
    return Table(
        leak
        for fold, (train, test) in enumerate(folds)
        for leak in _leaks_of(copies, fold, np.asarray(train), np.asarray(test))
    )


def _leaks_of(copies, fold, train, test) -> list[dict]:
    firsts = {}
    for row in train:
        firsts.setdefault(copies.digests[row], row)
    exact = {row: firsts[d] for row in test if (d := copies.digests[row]) in firsts}
    found = [(row, other, "exact", 1.0) for row, other in exact.items()]
    rest = np.array([row for row in test if row not in exact], dtype=np.int64)
    nearest, similarities = copies.nearest(rest, train)
    near = similarities >= NEAR
    found += [
        (row, other, "near", similarity)
        for row, other, similarity in zip(
            rest[near], nearest[near], similarities[near], strict=True
        )
    ]
    return [
        {
            "fold": fold,
            "test": int(row),
            "train": int(other),
            "copy": copy,
            "similarity": float(similarity),
        }
        for row, other, copy, similarity in sorted(found)
    ]


def told(leaks: Table, n_samples: int, kind: str) -> str:
    """Say how many samples are leaks, and what to do about them."""
    exact = {leak["test"] for leak in leaks if leak["copy"] == "exact"}
    near = {leak["test"] for leak in leaks} - exact
    if not leaks:
        return f"Leaks: no {kind} of a test set has a copy in the training set."
    return (
        f"Leaks: of {n_samples} {kind}s, {len(exact)} have an exact copy in the "
        f"training set of the fold that they test, and {len(near)} more a near copy, "
        "which makes scores too high. The rows are in the attribute leaks. To keep "
        "copies together, pass groups=datasets.find_duplicates(X) and "
        "cv=StratifiedGroupKFold() or GroupKFold()."
    )
