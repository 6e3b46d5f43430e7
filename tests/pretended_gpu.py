"""A GPU that is pretended: tensors that say they lie on cuda:0, do not mix with others, and are computed on the CPU.

What forgets to move a tensor fails here as it would on a GPU. Speed, bf16 kernels and CUDA graphs are not pretended.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import getattr_static
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda:0")
_ATEN = torch.ops.aten
_MIXED = (_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN.scatter.src)
"""Operations whose tensors may lie apart; the last is how autograd undoes a choice, into zeros of its own."""
_INDEXED = (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default)
"""Operations whose later tensors are indices, which may lie on the CPU."""
_MOVES = ("to", "cpu", "cuda", "type_as")
_DEVICE, _IS_CUDA = (getattr_static(Tensor, name).__get__ for name in ("device", "is_cuda"))


class OnGPU(Tensor):
    """A tensor that says it lies on the GPU; `kept` is where its numbers are."""

    kept: Tensor

    @staticmethod
    def __new__(cls, kept: Tensor) -> "OnGPU":
        """Wrap a tensor without a graph."""
        made = Tensor._make_wrapper_subclass(
            cls,
            kept.size(),
            strides=kept.stride(),
            storage_offset=kept.storage_offset(),
            dtype=kept.dtype,
            layout=kept.layout,
        )
        made.kept = kept
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer where a tensor lies, move it, and refuse to hand its numbers to NumPy."""
        kwargs, name, first = kwargs or {}, getattr(func, "__name__", ""), args[0] if args else None
        if name == "__get__" and isinstance(first, Tensor):
            if func == _DEVICE:
                return GPU if isinstance(first, OnGPU) else torch.device("cpu")
            if func == _IS_CUDA:
                return isinstance(first, OnGPU)
        if name in ("numpy", "__array__") and isinstance(first, OnGPU):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")
        if name in _MOVES and isinstance(first, Tensor):
            return _moved(name, first, args[1:], kwargs)
        if name == "new_tensor" and isinstance(first, OnGPU):
            return _put(func(first.kept, *args[1:], **kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Compute on the CPU what lies on the GPU; refuse to mix."""
        kwargs = kwargs or {}
        given = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
        strangers = [each for each in given if not isinstance(each, OnGPU) and each.ndim]
        is_index = func in _INDEXED and isinstance(args[0], OnGPU)
        if strangers and func not in _MIXED and not is_index:
            where = [("cuda:0" if isinstance(each, OnGPU) else "cpu", tuple(each.shape)) for each in given]
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, got {where}")
        unwrapped = {key: torch.device("cpu") if key == "device" else value for key, value in kwargs.items()}
        out = func(*tree_map(_kept, args), **tree_map(_kept, unwrapped))
        if func is _ATEN.copy_.default and not isinstance(args[0], OnGPU):
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_put, out))


class _There(torch.autograd.Function):
    """Move to the GPU, and gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return OnGPU(x.detach())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _kept(gradients[0])


class _Back(torch.autograd.Function):
    """Move to the CPU, and gradients back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _kept(x).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _put(gradients[0])


class _Pretend(TorchFunctionMode):
    """Make on the GPU what is asked for there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _MOVES and isinstance(args[0], Tensor):
            return _moved(name, args[0], args[1:], kwargs)
        if _is_gpu(kwargs.get("device")):
            return _put(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _kept(x: Any) -> Any:
    return x.kept if isinstance(x, OnGPU) else x


def _put(x: Any) -> Any:
    if not isinstance(x, Tensor) or isinstance(x, OnGPU):
        return x
    return OnGPU(x.detach()).requires_grad_(x.requires_grad)


def _moved(name: str, x: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Do what `Tensor.to`, `cpu`, `cuda` and `type_as` do."""
    where = {"cpu": False, "cuda": True}.get(name)
    dtype: torch.dtype | None = kwargs.get("dtype")
    for each in (*args, kwargs.get("device")):
        if isinstance(each, Tensor):
            where, dtype = isinstance(each, OnGPU), each.dtype
        elif isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, str | torch.device):
            where = _is_gpu(each)
    with torch._C.DisableTorchFunctionSubclass():
        x = x if dtype is None else x.to(dtype)
    if where is None or where == isinstance(x, OnGPU):
        return x
    if x.requires_grad and torch.is_grad_enabled():
        return (_There if where else _Back).apply(x)  # type: ignore[no-any-return]
    return _put(x.detach()) if where else _kept(x)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Pretend that this machine has a GPU, in this thread and in those that are started meanwhile."""
    run, autocast, swaps = threading.Thread.run, torch.autocast, torch.__future__.get_swap_module_params_on_conversion()

    def run_there(thread: threading.Thread) -> None:
        with _Pretend():
            run(thread)

    answers = {"is_available": True, "device_count": 1, "get_device_name": "pretended GPU"}
    answers |= {"synchronize": None, "is_current_stream_capturing": False}
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=answer: answer))
        stack.enter_context(patch.object(torch, "autocast", lambda _, **given: autocast("cpu", **given)))
        stack.enter_context(patch.object(threading.Thread, "run", run_there))
        stack.enter_context(_Pretend())
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            yield
        finally:
            torch.__future__.set_swap_module_params_on_conversion(swaps)
