"""Tensors on the CPU that say they are on `cuda:0`, so that code can be held to a GPU's rules where there is none.

An operation on one of them and a CPU tensor fails as CUDA's does. Whatever would make the host wait for the GPU is
counted, by the line of this project that asked for it, and so are kernels. There is no backward pass: autograd's
threads belong to real devices. It changes torch for the whole process: use it in a process of its own.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_consecutive"}
"""operations whose result, or whose result's shape, the host has to know"""
INDEXED = {"index", "index_put_", "index_put", "_index_put_impl_"}
VIEWS = {
    *("view", "_unsafe_view", "_reshape_alias", "expand", "t", "transpose", "permute", "slice", "select", "split"),
    *("split_with_sizes", "unbind", "unsqueeze", "squeeze", "as_strided", "unfold", "detach", "alias", "lift_fresh"),
}
"""operations that launch no kernel"""


class Counts:
    """What a stretch of code asked of the GPU."""

    def __init__(self) -> None:
        self.kernels = 0
        self.waits: Counter[str] = Counter()
        """how often the host waits, by operation and line"""


_open: list[Counts] = []


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts of what runs while it lasts, in inner ones too."""
    counts = Counts()
    _open.append(counts)
    try:
        yield counts
    finally:
        _open.remove(counts)


class PseudoCudaTensor(torch.Tensor):
    """`on_cpu`, said to be on the GPU."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> "PseudoCudaTensor":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            on_cpu.size(),
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            layout=on_cpu.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.on_cpu = on_cpu
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PseudoCudaTensor({self.on_cpu!r})"

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_places(index))

    def __setitem__(self, index: Any, values: Any) -> None:
        super().__setitem__(_places(index), values)

    def tolist(self) -> Any:
        _waits("tolist")
        return self.on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """For operations that make a tensor on the GPU from none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pseudo_cuda() -> Iterator[None]:
    """While it lasts, `device="cuda"` makes such tensors."""
    torch.cuda._lazy_init = lambda: None  # type: ignore[assignment]
    torch._C._ensureCUDADeviceGuardSet()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # type: ignore[assignment]
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, _placed(getattr(torch, name)))
    with _Mode():
        yield


def to_gpu(module: torch.nn.Module) -> None:
    """Move a module's parameters and buffers, tied ones together."""
    moved: dict[int, torch.nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                if id(parameter) not in moved:
                    there = PseudoCudaTensor(parameter.detach())
                    moved[id(parameter)] = torch.nn.Parameter(there, requires_grad=parameter.requires_grad)
                part._parameters[name] = moved[id(parameter)]
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = PseudoCudaTensor(buffer.detach())


def _line() -> str:
    for frame in reversed(traceback.extract_stack()):
        if "/dopd_vl/" in frame.filename:
            return f"{frame.filename.rpartition('/dopd_vl/')[2]}:{frame.lineno}"
    return "elsewhere"


def _waits(what: str) -> None:
    for counts in _open:
        counts.waits[f"{what} at {_line()}"] += 1


def _places(index: Any) -> Any:
    """An index with tensors in place of lists, which torch would copy to a real device."""
    if isinstance(index, tuple):
        return tuple(_places(one) for one in index)
    return torch.tensor(index, device=CUDA) if isinstance(index, list) else index


def _here(value: Any) -> Any:
    return value.on_cpu if isinstance(value, PseudoCudaTensor) else value


def _there(value: Any) -> Any:
    is_on_cpu = isinstance(value, torch.Tensor) and not isinstance(value, PseudoCudaTensor)
    return PseudoCudaTensor(value) if is_on_cpu else value


def _placed(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != "cuda":
            return make(*args, **kwargs) if device is None else make(*args, device=device, **kwargs)
        return PseudoCudaTensor(make(*tree_map(_here, args), **kwargs))

    return made


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    on_gpu = any(isinstance(tensor, PseudoCudaTensor) for tensor in tensors)
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    if not on_gpu and asked != "cuda":
        return func(*args, **kwargs)
    if on_gpu:
        _refuse_mixtures(name, func, args, tensors)
    to_host = _to_host(name, args, asked)
    if on_gpu and (name in WAITS or to_host or _masked(name, args)):
        _waits(name)
    if name not in VIEWS:
        for counts in _open:
            counts.kernels += 1
    args_here, kwargs_here = tree_map(_here, args), tree_map(_here, kwargs)
    if asked == "cuda":
        kwargs_here["device"] = torch.device("cpu")
    result = _computed(func, name, args_here, kwargs_here)
    if to_host:
        return args[0] if name == "copy_" else result
    result = tree_map(_there, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if on_gpu else result


def _refuse_mixtures(name: str, func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """CUDA takes numbers in tensors, and indices, from the host, and nothing else."""
    if name in ("_to_copy", "copy_", "lift_fresh"):
        return
    wrong = [t for t in tensors if not isinstance(t, PseudoCudaTensor) and t.dim() > 0]
    if name in INDEXED and isinstance(args[0], PseudoCudaTensor):
        wrong = [t for t in wrong if not any(t is index for index in args[1])]
    if wrong:
        shapes = [tuple(t.shape) for t in wrong]
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} at {_line()} got {shapes} on the CPU"
        )


def _to_host(name: str, args: Any, asked: str | None) -> bool:
    if name == "_to_copy":
        return asked == "cpu" and isinstance(args[0], PseudoCudaTensor)
    return name == "copy_" and not isinstance(args[0], PseudoCudaTensor)


def _masked(name: str, args: Any) -> bool:
    """An index of booleans, whose true entries the host has to count."""
    return name in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])


def _computed(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    aten = torch.ops.aten
    if func in (aten.mm.dtype, aten.mm.dtype_out):  # sums of half-precision products in fp32, which no CPU has
        found = args[0].to(args[2]) @ args[1].to(args[2])
        return kwargs["out"].copy_(found) if "out" in kwargs else found
    if func in (aten.addmm.dtype, aten.addmm.dtype_out):
        found = args[0] + args[1].to(args[3]) @ args[2].to(args[3])
        return kwargs["out"].copy_(found) if "out" in kwargs else found
    found = func(*args, **kwargs)
    return found.clone() if name == "_to_copy" else found
