"""What skops is given is damaged, or made to harm: it is refused by a ValueError.

What it stores and may load is in test_file.
"""

import io
import zipfile

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sktransfer.saving._skops import loads

skops = pytest.importorskip("skops.io")


@pytest.fixture(scope="module")
def stored():
    return skops.dumps(LogisticRegression(C=2).fit([[0.0], [1.0]], [0, 1]))


def archive_of(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def members_of(stored):
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_is_stored_is_loaded(stored):
    assert loads(stored).C == 2


def test_damage_is_a_value_error_or_changes_nothing_that_runs(stored):
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(stored)
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        try:
            loads(bytes(content))
        except ValueError:
            refused += 1
    assert refused > 50


def test_what_is_no_archive_or_a_part_of_one_is_refused(stored):
    for content in (b"", b"PK", stored[:-1], stored[: len(stored) // 2]):
        with pytest.raises(ValueError, match="BadZipFile"):
            loads(content)


def test_an_archive_that_grows_is_refused_before_it_is_read(stored):
    members = members_of(stored) | {"zeros.npy": bytes(10**7)}
    with pytest.raises(ValueError, match="an archive of .* bytes with 10,"):
        loads(archive_of(members, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize("schema", [b"", b"[]", b"{}", b"null", b"[" * 100_000])
def test_schemas_that_make_no_sense_are_refused(schema, stored):
    members = members_of(stored) | {"schema.json": schema}
    with pytest.raises(ValueError, match="Error"):
        loads(archive_of(members))
