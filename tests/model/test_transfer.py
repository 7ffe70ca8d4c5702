import numpy as np
import pandas as pd
import pytest
import torch

from isd.model._transfer import covariate_map, match_classes, match_rows


def test_names_are_matched_as_they_are_before_versions_are_taken_off():
    reference = pd.Index(["ENST1.1", "ENST2.3", "ENST2.4", "ENSG3.13_100_200_1"])
    found = match_rows(
        pd.Index(["ENST2.4", "ENST1.9", "ENST2.9", "ENSG3.13_100_200_1", "ENSG3.13_100_900_1"]), reference
    )
    # ENST2.9 could be either of two versions; the last two differ in what only looks like a version
    assert found.source.tolist() == ["copied", "copied", "new", "copied", "new"]
    assert found.mixing[[0, 1, 3]].indices.tolist() == [2, 0, 3]


def test_an_unknown_isoform_is_its_genes_by_usage_and_else_the_mean():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    found = match_rows(
        pd.Index(["new isoform", "B", "elsewhere", "no gene"]),
        pd.Index(["A", "B", "C"]),
        np.array(["G1.2", "G1", "G9", np.nan], dtype=object),
        np.array(["G1", "G1", ""], dtype=object),
        np.array([0.3, 0.1, 5.0]),
    )
    assert found.source.tolist() == ["from gene", "copied", "new", "new"]
    expected = torch.stack([torch.tensor([0.75, 0.25]), table[1], table.mean(0), table.mean(0)])
    torch.testing.assert_close(found(table), expected)
    torch.testing.assert_close(found(table.T, dim=1), expected.T)


def test_copied_rows_are_equal_to_the_last_bit():
    rng = np.random.default_rng(0)
    names = pd.Index([f"T{i}" for i in range(50)])
    table = torch.from_numpy(rng.standard_normal((50, 7)).astype(np.float32))
    order = rng.permutation(50)
    assert torch.equal(match_rows(names[order], names)(table), table[order])


def test_shuffled_rows_are_the_same_rows_for_every_tensor():
    names = pd.Index([f"T{i}" for i in range(30)])
    table = torch.arange(60.0).reshape(30, 2)
    one, two = (match_rows(names, names).shuffled(np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one(table)[:, 0], two(table[:, 0]))
    assert not torch.equal(one(table), table)
    assert torch.equal(one(table).sort(0).values, table)


def test_classes_are_matched_by_name():
    table = torch.tensor([[1.0], [2.0]])
    assert match_classes(["b", "c"], ["a", "b"])(table).ravel().tolist() == [2.0, 0.0]
    assert match_classes(["b", "c"], ["a", "b"], np.array([0.25, 0.75]))(table).ravel().tolist() == [2.0, 1.75]


class _Model:
    """What the map of covariates asks of a model."""

    def __init__(self, batches, covariates, numbers, codes):
        self.module = type("Module", (), {"use_library": True})
        self.batches, self.covariate_categories = np.array(batches, dtype=object), covariates
        self.setup_args = {"continuous_covariate_keys": numbers}
        self.n_categories = (1, len(batches), *map(len, covariates.values()))
        self.template_codes_ = np.array(codes)


def test_columns_of_covariates_are_found_by_key_and_class():
    reference = _Model(["x", "y"], {"donor": ["p", "q"]}, ["age"], [[0, 0, 0], [0, 0, 1], [0, 1, 1], [0, 1, 1]])
    ours = _Model(["one"], {"sex": ["f", "m"], "donor": ["q", "r"]}, ["dose", "age"], [[0, 0, 0, 0]])
    columns, constant = covariate_map(ours, reference)
    # of the reference: library, x, y, p, q, age
    expected = np.zeros((7, 6))
    expected[0, 0] = 1  # library
    expected[3, 4] = 1  # q; f and m are new
    expected[4, 3:5] = [0.25, 0.75]  # r: the mean donor
    expected[6, 5] = 1  # age; dose is new
    np.testing.assert_allclose(columns.mixing.toarray(), expected)
    np.testing.assert_allclose(constant, [0, 0.5, 0.5, 0, 0, 0])


@pytest.mark.parametrize("numbers", [None, ["age"]])
def test_a_model_on_its_own_covariates_changes_nothing(numbers):
    model = _Model(["x", "y"], {"donor": ["p", "q"]}, numbers, [[0, 0, 0]])
    columns, constant = covariate_map(model, model)
    np.testing.assert_array_equal(columns.mixing.toarray(), np.eye(5 + (numbers is not None)))
    assert not constant.any()
