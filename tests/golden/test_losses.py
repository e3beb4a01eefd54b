"""A refactoring may not move a loss. How to record new ones, and when: record.py."""

import json

import pytest

from golden.record import GOLDEN, losses
from tiny import CASES

RECORDED = json.loads(GOLDEN.read_text())


def test_exactly_the_methods_that_exist_are_recorded() -> None:
    assert set(RECORDED) == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_first_losses_are_the_recorded_ones(case: str) -> None:
    # Loose enough for another processor's order of additions, tight enough for any change of the arithmetic.
    assert losses(case) == pytest.approx(RECORDED[case], rel=2e-4)
