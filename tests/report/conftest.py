"""Few bootstrap resamples: these tests are about what is shown, not about the width of an interval."""

import pytest


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr("ehrlab.report.collect.NUM_BOOTSTRAP", 120)
