"""Shapes and types of everything that computes with tensors are checked while tests run."""

import os

import jaxtyping
import torch
from hypothesis import HealthCheck, settings

jaxtyping.install_import_hook(
    ["ehrlab.core", "ehrlab.nn", "ehrlab.augment", "ehrlab.models", "ehrlab.training"], "beartype.beartype"
)
# On tensors of a few hundred numbers a second thread only waits for the first.
torch.set_num_threads(1)
# Speed is measured in benchmarks/; a busy machine must not fail a law. CI draws the same examples each time.
settings.register_profile(
    "laws", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("laws")
