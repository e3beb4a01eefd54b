"""What a phase leaves for runs whose model has other parts beside those that the phase trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ehrlab.core.errors import InputError

WEIGHTS = "model.safetensors"
READS = "reads"


def mark(module: nn.Module, content: str) -> None:
    """Let a module's weights say of what input they are: `take_weights` refuses them for another of the same size."""
    digest = hashlib.sha256(content.encode()).digest()[:16]
    module.register_buffer(READS, torch.tensor(list(digest), dtype=torch.uint8))


class PhaseWeights:
    """Confines a model's state dict to the parts that a phase has to do with.

    A phase that several runs share (Phase.ignores) is trained once, by whichever comes first. The others load what it
    left into models with another head or body, which must be neither in the file nor expected there. So: between
    `enter("stay")` and the next phase, state_dict() holds only these parts; and a state dict that holds exactly the
    parts of a known phase leaves the rest of the model as it is. Everything else is loaded as strictly as ever.

    parts   phase -> dotted names of submodules; names that the model does not have are passed over
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, Collection[str]]) -> None:
        self.parts = {phase: tuple(f"{name}." for name in names) for phase, names in parts.items()}
        self.phase: str | None = None
        # torch writes an attribute on the hook, which a bound method cannot have.
        model.register_state_dict_post_hook(partial(PhaseWeights._drop, self))
        model.register_load_state_dict_pre_hook(self._complete)

    def enter(self, phase: str) -> None:
        """`phase` begins; one that is not among `parts` leaves everything."""
        self.phase = phase if phase in self.parts else None

    def _drop(self, model: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]) -> None:
        if self.phase is None:
            return
        for key in [key for key in state if key.startswith(prefix)]:
            if not key.removeprefix(prefix).startswith(self.parts[self.phase]):
                del state[key]

    def _complete(self, model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        # Of the children: the model's own state dict is what the hook confines.
        own = {
            f"{name}.{key}": tensor
            for name, child in model.named_children()
            for key, tensor in child.state_dict().items()
        }
        found = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
        if found == set(own):
            self.phase = None
            return
        for phase, names in self.parts.items():
            if found == {key for key in own if key.startswith(names)}:
                self.phase = phase  # what was loaded as a part is saved as one
                state.update({f"{prefix}{key}": own[key] for key in set(own) - found})
                return


def take_weights(
    model: nn.Module,
    children: Collection[str],
    path: Path,
    setting: str,
    remedy: str,
    adapt: Callable[[str, Tensor, Tensor], Tensor] = lambda name, given, own: given,
) -> None:
    """Weights for some of the model's children from a file, or from the folder of a run or phase.

    setting  who named the path, for the error; `remedy` is its end
    adapt    (name, given, own) -> what is taken of a tensor

    Errors: InputError where the file cannot be read, lacks a tensor, has one of another shape, or is of other input.
    """
    try:
        tensors = load_file(_file(path))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, setting, error) from error
    for name, child in model.named_children():
        if name not in children:
            continue
        taken = {}
        for key, own in child.state_dict().items():
            full = f"{name}.{key}"
            if full not in tensors:
                raise InputError(f"{setting}={path}: expected a tensor {full}, found none. {remedy}")
            taken[key] = adapt(full, tensors[full], own)
            if taken[key].shape != own.shape:
                shapes = tuple(own.shape), tuple(tensors[full].shape)
                raise InputError(f"{setting}={path}: expected {full} of shape {shapes[0]}, found {shapes[1]}. {remedy}")
            if key == READS and not torch.equal(taken[key], own):
                raise InputError(
                    f"{setting}={path}: expected {name} to read the features, codes or vectors of these data, found "
                    f"weights that were trained on others. {remedy}"
                )
        child.load_state_dict(taken)


def weights_digest(path: Path, setting: str) -> str:
    """Names the content of weights, wherever they lie. InputError where none can be read."""
    try:
        with _file(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, setting, error) from error


def _file(path: Path) -> Path:
    return path / WEIGHTS if path.is_dir() else path


def _unreadable(path: Path, setting: str, error: Exception) -> InputError:
    return InputError(
        f"{setting}={path}: expected weights, a .safetensors file or the folder of a run or phase with {WEIGHTS}, "
        f"found none that can be read ({type(error).__name__}). Check the path."
    )
