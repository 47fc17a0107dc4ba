"""What the comparison of sums forgives, and what not."""

import math

import pytest
import torch

from tests.closeness import assert_close

LARGE, SMALL = torch.tensor([3.0, 1e-9, -1.0]), torch.zeros(2)


def test_rounding_is_forgiven_at_the_scale_of_its_tensor():
    assert_close(LARGE + 2e-5, LARGE)
    assert_close({"large": LARGE, "small": SMALL + 2e-7}, {"large": LARGE, "small": SMALL})
    assert_close([1.0, 100.0], (1.000009, 100.0009))
    assert_close(SMALL, SMALL)


@pytest.mark.parametrize(
    ("actual", "message"),
    [
        (
            {"large": LARGE + 4e-5, "small": SMALL},
            r"large: the error is 4.\d+e-05, the bound 3.00e-05",
        ),
        (
            {"large": LARGE, "small": SMALL + 4e-7},
            r"small: the error is 4.00e-07, the bound 3.00e-07",
        ),
        ({"large": LARGE * math.nan, "small": SMALL}, "large: the error is nan"),
        ({"large": LARGE, "small": torch.zeros(3)}, "small"),
        ({"large": LARGE}, "small"),
    ],
)
def test_anything_else_is_an_error_that_names_its_tensor(actual, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(actual, {"large": LARGE, "small": SMALL})


def test_a_number_alone_has_its_own_scale_only():
    with pytest.raises(AssertionError):
        assert_close(1e-12, 0.0)
    with pytest.raises(AssertionError, match="not finite"):
        assert_close(math.inf, math.inf)
