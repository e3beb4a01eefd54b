"""What a phase leaves for runs whose model has other parts beside those that the phase trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ehrlab.core.errors import InputError

WEIGHTS = "model.safetensors"


class PhaseWeights:
    """Confines a model's state dict to the children that a phase has to do with.

    A phase that several runs share (Phase.ignores) is trained once, by whichever comes first. The others load what it
    left into models with another head or body, which must be neither in the file nor expected there. So: between
    `enter("stay")` and the next phase, state_dict() holds only these children; and a state dict that holds exactly the
    children of a known phase leaves the rest of the model as it is. Everything else is loaded as strictly as ever.

    children   phase -> names of the model's children; names that the model does not have are passed over
    """

    def __init__(self, model: nn.Module, children: Mapping[str, Collection[str]]) -> None:
        self.children = {phase: frozenset(names) for phase, names in children.items()}
        self.phase: str | None = None
        # torch writes an attribute on the hook, which a bound method cannot have.
        model.register_state_dict_post_hook(partial(PhaseWeights._drop, self))
        model.register_load_state_dict_pre_hook(self._complete)

    def enter(self, phase: str) -> None:
        """`phase` begins; one that is not among `children` leaves everything."""
        self.phase = phase if phase in self.children else None

    def _drop(self, model: nn.Module, state: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any]) -> None:
        if self.phase is None:
            return
        for key in [key for key in state if key.startswith(prefix)]:
            if key.removeprefix(prefix).split(".")[0] not in self.children[self.phase]:
                del state[key]

    def _complete(self, model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        own = {name: child.state_dict(prefix=f"{prefix}{name}.") for name, child in model.named_children()}
        own = {name: held for name, held in own.items() if held}
        found = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
        if found == set(own):
            self.phase = None
            return
        for phase, names in self.children.items():
            if found == names & set(own):
                self.phase = phase  # what was loaded as a part is saved as one
                for name in set(own) - found:
                    state.update(own[name])
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

    Errors: InputError where the file cannot be read, lacks a tensor, or has one of another shape.
    """
    file = path / WEIGHTS if path.is_dir() else path
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{setting}={path}: expected weights, a .safetensors file or the folder of a run or phase with {WEIGHTS}, "
            f"found none that can be read ({type(error).__name__}). Check the path."
        ) from error
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
        child.load_state_dict(taken)
