from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from isd.metrics import exact_copy_rate, nearest_distance_ratio, row_hashes


def test_ratio_matches_its_definition_and_tells_copies():
    rng = np.random.default_rng(0)
    train, test, fake = (rng.normal(size=(n, 4)) for n in (200, 90, 70))
    expected = np.median(cdist(fake, train).min(axis=1)) / np.median(cdist(test, train).min(axis=1))
    assert nearest_distance_ratio(fake, test, train) == pytest.approx(expected)
    assert nearest_distance_ratio(train[:70] + 0.01 * rng.normal(size=(70, 4)), test, train) < 0.1
    assert nearest_distance_ratio(fake * 4, test, train) > 2


def test_hashes_tell_rows_apart_however_they_are_stored():
    rng = np.random.default_rng(1)
    dense = rng.poisson(0.5, size=(3000, 12))
    unique = np.unique(dense, axis=0, return_inverse=True)[1].ravel()
    hashes = row_hashes(dense)
    # equal exactly where rows are equal
    np.testing.assert_array_equal(
        np.unique(hashes, return_inverse=True)[1][:, None] == 0, (hashes == hashes.min())[:, None]
    )
    assert len(np.unique(hashes)) == len(np.unique(unique))
    assert all(len(np.unique(hashes[unique == code])) == 1 for code in range(20))
    matrix = sparse.csr_matrix(dense.astype(np.uint32))
    matrix.data[::7] = 0  # zeros that are stored
    np.testing.assert_array_equal(row_hashes(matrix), row_hashes(matrix.toarray()))
    backwards = sparse.csr_matrix(dense)
    for row in range(5):
        part = slice(backwards.indptr[row], backwards.indptr[row + 1])
        backwards.indices[part] = backwards.indices[part][::-1].copy()
        backwards.data[part] = backwards.data[part][::-1].copy()
    np.testing.assert_array_equal(row_hashes(backwards), hashes)


def test_copy_rate_counts_copies():
    rng = np.random.default_rng(2)
    train = sparse.csr_matrix(rng.poisson(3.0, size=(100, 30)))
    new = rng.poisson(3.0, size=(60, 30))
    mixed = sparse.vstack([train[:20], sparse.csr_matrix(new)]).tocsr()
    assert exact_copy_rate(mixed, train) == pytest.approx(20 / 80)
    almost = train[:20].toarray()
    almost[:, 3] += 1
    assert exact_copy_rate(almost, train) == 0
    with pytest.raises(ValueError, match="29 features"):
        exact_copy_rate(new[:, :29], train)
