"""Shapes and types of everything that computes with tensors are checked while tests run."""

import jaxtyping
import torch

jaxtyping.install_import_hook(
    ["ehrlab.core", "ehrlab.nn", "ehrlab.augment", "ehrlab.models", "ehrlab.training"], "beartype.beartype"
)
# On tensors of a few hundred numbers a second thread only waits for the first.
torch.set_num_threads(1)
