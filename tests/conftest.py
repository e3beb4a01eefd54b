"""Shapes and types of everything that computes with tensors are checked while tests run."""

import jaxtyping
import torch

# Not core.batch: beartype cannot check a method that returns `Self` outside a decorated class.
jaxtyping.install_import_hook(
    ["ehrlab.core.model", "ehrlab.nn", "ehrlab.augment", "ehrlab.models"], "beartype.beartype"
)
# On tensors of a few hundred numbers a second thread only waits for the first.
torch.set_num_threads(1)
