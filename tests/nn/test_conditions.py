import pytest
import torch

from isd.nn import Conditions, one_hot_conditions


def test_one_hot_gives_zeros_for_the_null_code_and_no_column_for_one_category():
    codes = torch.tensor([[0, 0, 1], [2, 0, 3]])
    out = one_hot_conditions(codes, [2, 1, 3])
    assert out.tolist() == [[1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]


def test_drop_hides_each_attribute_and_all_together_at_the_stated_rate():
    torch.manual_seed(0)
    conditions = Conditions([3, 4], 8)
    codes = torch.zeros(20_000, 2, dtype=torch.long)
    dropped = conditions.drop(codes, 0.1)
    hidden = dropped == torch.tensor([3, 4])
    # hidden alone (0.1) or with all others (0.1)
    assert hidden.float().mean(0).tolist() == pytest.approx([0.19, 0.19], abs=0.015)
    assert hidden.all(1).float().mean().item() == pytest.approx(0.1 + 0.9 * 0.01, abs=0.01)
    assert (dropped[~hidden] == 0).all()


def test_no_dropout_returns_the_codes_themselves():
    conditions = Conditions([3], 8)
    codes = torch.zeros(4, 1, dtype=torch.long)
    assert conditions.drop(codes, 0.0) is codes
