"""What a model sees: a batch of samples as padded tensors, one group per modality.

Shape letters of the whole project: ``B`` batch, ``V`` visits, ``C`` codes in a visit, ``T`` tokens, ``H`` hours,
``F`` features, ``S`` stays, ``G`` drugs, ``N`` notes, ``L`` text tokens, ``E`` embedding, ``D`` hidden, ``K`` labels.

Every mask is True where the entry is real. Padding is always on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

Group = TypeVar("Group", bound="TensorGroup")  # not typing.Self: beartype cannot check it in dataclasses


class TensorGroup:
    """Shared behaviour of the frozen dataclasses below: map a function over every tensor, recursively."""

    def map(self: Group, fn: Callable[[Tensor], Tensor]) -> Group:
        """The same group with `fn` applied to each tensor; absent (None) members stay absent."""

        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return fn(value)
            return value.map(fn) if isinstance(value, TensorGroup) else value

        return type(self)(**{f.name: apply(getattr(self, f.name)) for f in fields(self)})  # type: ignore[arg-type]

    def to(self: Group, device: torch.device | str, non_blocking: bool = False) -> Group:
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self: Group) -> Group:
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class Visits(TensorGroup):
    """Time-ordered visits, each a set of codes.

    codes             ids in 1 .. num_codes - 1, distinct within a visit; 0 = padding
    days_before_last  t_V - t_v >= 0, days to the sample's last visit; 0 at padding
    mask              True = real visit. A real visit may hold no code (all its codes unseen in training).
    """

    codes: Int[Tensor, "B V C"]
    days_before_last: Float[Tensor, "B V"]
    mask: Bool[Tensor, "B V"]


@dataclass(frozen=True)
class Tokens(TensorGroup):
    """A patient as one sequence of medical-code tokens; each with its visit number, age (years), place of service."""

    ids: Int[Tensor, "B T"]
    visit: Int[Tensor, "B T"]
    age: Int[Tensor, "B T"]
    place: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class Stays(TensorGroup):
    """Up to S intensive-care stays, oldest first, each as H hourly vectors of F binary features (FIDDLE).

    features  0 or 1, one byte each: 48 x 1,318 of them a stay would be 253 kB as floats. Models cast them in the step
    mask      True = real stay
    """

    features: UInt8[Tensor, "B S H F"]
    mask: Bool[Tensor, "B S"]


@dataclass(frozen=True)
class CodeSets(TensorGroup):
    """The sets of codes of one admission, by kind; ids in 1 .., distinct, 0 = padding. A set may be empty."""

    diagnoses: Int[Tensor, "B C"]
    drugs: Int[Tensor, "B G"]


@dataclass(frozen=True)
class Labs(TensorGroup):
    """One value per lab test (standard deviations from the training mean; 0 where not measured) and whether it was."""

    values: Float[Tensor, "B F"]
    observed: Bool[Tensor, "B F"]


@dataclass(frozen=True)
class Notes(TensorGroup):
    """Clinical notes of one admission, each as the vector that a frozen encoder made of it."""

    vectors: Float[Tensor, "B N E"]
    mask: Bool[Tensor, "B N"]


@dataclass(frozen=True)
class Text(TensorGroup):
    """The text of one admission as the ids of a language model's tokenizer. It may be empty: a row of padding."""

    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]


@dataclass(frozen=True)
class Batch(TensorGroup):
    """B samples. A sample is one (subject_id, prediction_time); absent modalities are None."""

    subject_id: Int[Tensor, " B"]
    prediction_time: Int[Tensor, " B"]  # microseconds since 1970-01-01; with subject_id it names the sample
    visits: Visits | None = None
    tokens: Tokens | None = None
    stays: Stays | None = None
    codes: CodeSets | None = None
    labs: Labs | None = None
    notes: Notes | None = None
    text: Text | None = None
    demographics: Float[Tensor, "B F"] | None = None
    labels: Float[Tensor, "B K"] | None = None

    def __len__(self) -> int:
        return len(self.subject_id)

    def provides(self) -> frozenset[str]:
        """Names of the modalities that this batch holds."""
        return frozenset(m for m in MODALITIES if getattr(self, m) is not None)


MODALITIES = ("visits", "tokens", "stays", "codes", "labs", "notes", "text", "demographics")
