"""A device that computes on the processor and refuses the processor's tensors, as a GPU does.

Inside `other_device()`, what is moved to or made on OTHER is a tensor that says it lies there. An operation on tensors
of both places raises, apart from what a GPU allows: copies, indices that lie on the processor, and single numbers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

OTHER = torch.device("meta")  # has no kernels of its own, so that nothing is computed behind our back

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
# Asked of the tensor inside: operations such as transpose_ change its shape.
SHAPE_QUESTIONS: dict[Any, Callable[..., Any]] = {
    aten.sym_size.default: lambda here: list(here.size()),
    aten.sym_stride.default: lambda here: list(here.stride()),
    aten.sym_numel.default: Tensor.numel,
    aten.sym_storage_offset.default: Tensor.storage_offset,
    aten.dim.default: Tensor.dim,
    aten.is_contiguous.default: Tensor.is_contiguous,
    aten.is_contiguous.memory_format: lambda here, format: here.is_contiguous(memory_format=format),
    aten.is_non_overlapping_and_dense.default: torch.ops.aten.is_non_overlapping_and_dense,
    aten.is_strides_like_format.default: lambda here, format: False,
}
CONSTRUCTORS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


class There(Tensor):
    """Lies on OTHER; `here` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Self:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            here.size(),
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=OTHER,
            dispatch_sizes_strides_policy="sizes",
        )
        tensor.here = here
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func in SHAPE_QUESTIONS:
        return SHAPE_QUESTIONS[func](args[0].here, *args[1:])
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    here = [x for x in tensors if not isinstance(x, There) and x.ndim > 0]
    assert all(x.device != OTHER for x in here), f"{func}: a tensor was made on the other device behind our back"
    indexes = func.overloadpacket.__name__ in INDEXING
    if there and here and func not in COPIES and not (indexes and isinstance(tensors[0], There)):
        shapes = [[tuple(x.shape) for x in place] for place in (there, here)]
        raise RuntimeError(f"{func}: shapes {shapes[0]} are on the other device, {shapes[1]} are not")

    stays_there = bool(there)
    if func is aten.copy_.default:
        stays_there = isinstance(args[0], There)
    elif kwargs.get("device") is not None:
        stays_there = torch.device(kwargs["device"]).type == OTHER.type
    known = {id(x.here): x for x in there}  # what an operation in place returns

    def unwrap(x: Any) -> Any:
        if isinstance(x, There):
            return x.here
        return torch.device("cpu") if isinstance(x, torch.device) else x

    def wrap(x: Any) -> Any:
        if id(x) in known:
            return known[id(x)]
        return There(x) if stays_there and isinstance(x, Tensor) else x

    return tree_map(wrap, func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs)))


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """Numbers from Python and back: on a device without memory they would be lost before an operation is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist:
            return args[0].cpu().tolist()
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            own, index, *value = args
            return func(own, tree_map_only(list, torch.tensor, index, is_leaf=lambda x: isinstance(x, list)), *value)
        if func not in CONSTRUCTORS:
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        if func is Tensor.new_tensor:
            own, *args = args
            func, device = torch.tensor, device or own.device
            kwargs.setdefault("dtype", own.dtype)
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


@contextmanager
def other_device() -> Iterator[torch.device]:
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Operations(), _Numbers():
            yield OTHER
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
