"""The simulator's numbers are the ones that were fixed before any method was run on it."""

from ehrlab.simulation import sequences, specification

FIXED = "3-55fc4d726b6b"
FIXED_SEQUENCES = "sequences-1-3557efc73935"


def test_the_code_says_what_the_frozen_specification_says() -> None:
    assert specification.describe() == specification.FROZEN.read_text(encoding="utf-8")


def test_the_digests_are_the_fixed_ones() -> None:
    assert specification.SPECIFICATION == FIXED
    assert sequences.SPECIFICATION == FIXED_SEQUENCES
