"""Products of which half is made, against the whole ones."""

import pytest
import torch

from karipap_core.spectra.symmetric import gram, mirrored


@pytest.mark.parametrize("shape", [(1, 3), (40, 7), (512, 30), (777, 1300), (1111, 5)])
def test_gram_matrices_are_those_of_the_plain_product(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for given in (matrix, matrix.T):
        found = gram(given)
        assert len(found) < 512 or torch.equal(found, found.T)
        torch.testing.assert_close(found, given @ given.T, rtol=1e-12, atol=1e-12)


def test_a_lower_triangle_is_mirrored_in_its_place():
    matrix = torch.randn(1030, 1030, generator=torch.Generator().manual_seed(0))
    wanted = matrix.tril() + matrix.tril(-1).T
    assert mirrored(matrix) is matrix and torch.equal(matrix, wanted)
