"""The helper that reads error messages can fail, and only for what is not said."""

from __future__ import annotations

import pytest

from tests.refusals import facts, refused

TEXT = "weights must have shape (3,), one per point, got (2,); drop the last entry"


def test_facts_are_names_numbers_and_shapes():
    assert facts(TEXT) == ["weights", "(3,)", "(2,)"]
    assert facts("dt must be positive") == ["dt must be positive"]
    assert facts(
        "points has dtype torch.float16, too coarse for transport; use float32/float64"
    ) == ["points", "torch.float16", "float32/float64"]


def test_another_wording_of_the_same_facts_passes():
    other = "weights: expected (3,), found shape (2,)"
    with refused(ValueError, TEXT):
        raise ValueError(other)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (ValueError, "weights must have shape (3,), got (4,)"),
        (ValueError, "points must have shape (3,), got (2,)"),
        (TypeError, TEXT),
    ],
)
def test_other_facts_do_not_pass(kind, text):
    with pytest.raises((AssertionError, TypeError)), refused(ValueError, TEXT):
        raise kind(text)
