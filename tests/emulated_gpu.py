"""A GPU that is not there: tensors say that they are on it, and the CPU computes their numbers.

It refuses what a GPU refuses (operations between memories, products of matrices of other shapes
than it takes), and counts what a program waits for.
"""

import contextlib
import traceback
from functools import cache
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from diffcodec.models import model
from diffcodec.networks.gemm import products_work

GPU, CPU = torch.device("meta"), torch.device("cpu")  # "cuda" needs another torch
WAITS_FOR = {  # operators of which a number, or the shape of what they give, comes from a GPU
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique",
    "unique2",
    "_unique2",
}


class GpuTensor(torch.Tensor):
    """Numbers in a GPU's memory, as it seems."""

    @staticmethod
    def __new__(cls, numbers):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=GPU,
            requires_grad=numbers.requires_grad,
        )

    def __init__(self, numbers):
        self.numbers = numbers

    def __repr__(self, **_):
        return f"GpuTensor({list(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} outside of the emulation")


class Event:
    """Of a stream whose work is always done."""

    waited_for = 0

    def record(self):
        """Nothing to do."""

    def synchronize(self):
        """Count it."""
        Event.waited_for += 1


class Generator(torch.Generator):
    """Draws of a CPU that seem to be a GPU's."""

    def __new__(cls, device="cpu"):
        found = super().__new__(cls)
        found.where = torch.device(device)
        return found

    @property
    def device(self):
        """Where it seems to draw."""
        return self.where


def _is_gpu(x):
    return isinstance(x, torch.device | str) and torch.device(x).type == GPU.type


_is_made_of_others = cache(lambda func: func._can_decompose())


def _leaves(x):
    if isinstance(x, list | tuple):
        for each in x:
            yield from _leaves(each)
    else:
        yield x


def _each(change, x):
    return type(x)(_each(change, y) for y in x) if isinstance(x, list | tuple) else change(x)


class EmulatedGpu(TorchDispatchMode):
    """Within it the device GPU works; ``waits`` are the places that wait for one."""

    def __init__(self):
        super().__init__()
        self.waits, self.calls = [], []
        self._pinned = WeakIdKeyDictionary()

    def _wait(self, name):
        frames = traceback.extract_stack()
        place = [f for f in frames if "/diffcodec/" in f.filename or f is frames[0]][-1]
        self.waits.append(
            f"{name}: {place.filename.rsplit('/', 1)[-1]}:{place.lineno} {place.line}"
        )

    def pin(self, tensor):
        """A copy in pinned memory."""
        with torch.utils._python_dispatch._disable_current_modes():
            copy = tensor.clone(memory_format=torch.contiguous_format)
        self._pinned[copy] = True
        return copy

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Compute on the CPU, and see to it that a GPU could."""
        kwargs = dict(kwargs or {})
        if _is_made_of_others(func):  # into those that are told apart below
            with self:
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        kind = name.rstrip("_")
        flat = list(_leaves((args, list(kwargs.values()))))
        there = [x for x in flat if isinstance(x, GpuTensor)]
        here = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, GpuTensor)]
        is_pinned = kwargs.pop("pin_memory", None)
        wanted = kwargs.get("device")
        # tensors of that device which are not ours come from torch.tensor, which takes a copy
        strange = [x for x in here if x.device == GPU]
        if strange and not there:  # of the outline of a network
            return func(*args, **kwargs)
        assert not strange, f"{name} of numbers from torch.tensor"
        if there or _is_gpu(wanted):
            self.calls.append(name)
            self._check(name, kind, there, here, args, kwargs)
        if wanted is not None:
            kwargs["device"] = CPU
        result_there = _is_gpu(wanted) if wanted is not None else bool(there)
        if name == "copy_":
            result_there = isinstance(args[0], GpuTensor)

        def unwrap(x):
            return x.numbers if isinstance(x, GpuTensor) else x

        found = func(*_each(unwrap, args), **{name: _each(unwrap, x) for name, x in kwargs.items()})
        if func._schema.is_mutable and not func._schema.name.endswith("_out"):
            wrapped = {id(x.numbers): x for x in there}
            return _each(lambda x: wrapped.get(id(x), x), found)
        if result_there:
            with torch.inference_mode(False):  # else views of parameters are refused
                return _each(lambda x: GpuTensor(x) if isinstance(x, torch.Tensor) else x, found)
        if is_pinned:
            self._pinned[found] = True
        return found

    def _check(self, name, kind, there, here, args, kwargs):
        """Hold a call on the GPU against what one does.

        Raises:
            AssertionError: it would fail there.
        """
        if kind in WAITS_FOR:
            self._wait(name)
        if kind == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self._wait("index by a mask")
        if kind == "index_put" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self._wait("index_put by a mask")
        if kind == "_int_mm":
            (rows, inner), (_, columns) = (x.shape for x in args)
            assert rows > 16 and inner % 8 == columns % 8 == 0, [x.shape for x in args]
            assert args[0].dtype == args[1].dtype == torch.int8
            assert args[0].stride(1) == args[1].stride(0) == 1
        if kind == "_to_copy":
            source, target = args[0], kwargs.get("device") or args[0].device
            if torch.device(target).type != source.device.type:
                to_gpu = _is_gpu(target)
                if not (to_gpu and kwargs.get("non_blocking") and source in self._pinned):
                    self._wait("to the GPU" if to_gpu else "to the CPU")
            return
        if kind == "copy":
            target, source = args[:2]
            if target.device != source.device and source.ndim:
                other = source if target.device == GPU else target
                does_not = args[2] if len(args) > 2 else kwargs.get("non_blocking")
                if not (does_not and other in self._pinned):
                    self._wait("copy")
            return
        mixed = [x for x in here if x.ndim]
        assert not mixed, f"{name} of the GPU's and of the CPU's: {[x.shape for x in mixed]}"
        if here and kind in {"where", "index", "index_put", "stack", "cat"}:
            self._wait(f"{name} with a number of the CPU's")


@contextlib.contextmanager
def emulated_gpu(proves=False):
    """A GPU for models that are loaded within, and for all torch calls.

    Unless it ``proves`` that it is exact, which takes seconds, it is taken to be.
    """
    gpu = EmulatedGpu()

    def pin_memory(self):
        return gpu.pin(self)

    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (model, "find_device", lambda name: CPU if name == "cpu" else GPU),
            (model, "describe_device", str),
            (torch.cuda, "synchronize", lambda device=None: gpu._wait("synchronize")),
            (torch.cuda, "mem_get_info", lambda device=None: (1 << 33, 1 << 34)),
            (torch.cuda, "memory_reserved", lambda device=None: 1 << 20),
            (torch.cuda, "memory_allocated", lambda device=None: 1 << 10),
            (torch.cuda, "Event", Event),
            (torch, "Generator", Generator),
            (torch.Tensor, "pin_memory", pin_memory),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        if not proves:
            for name in ("check_products", "check_agreement"):
                stack.enter_context(mock.patch.object(model, name, lambda *_: None))
        for cached in (model._load, products_work):
            cached.cache_clear()
            stack.callback(cached.cache_clear)
        stack.enter_context(gpu)
        yield gpu
