"""torch says that there is an RTX 5090 and does everything on the CPU: `.to('cuda')` is swallowed."""

import time
import types

NAME, CAPABILITY, MEMORY = "NVIDIA GeForce RTX 5090", (12, 0), 34_190_458_880
UUID = "11111111-2222-3333-4444-555555555555"


class Event:
    def __init__(self, enable_timing=False):
        self.at = 0.0

    def record(self, stream=None):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 1000


def patch(torch):
    cuda = torch.cuda
    properties = types.SimpleNamespace(
        name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], total_memory=MEMORY, uuid=UUID, is_integrated=0
    )
    values = {
        "is_available": True, "device_count": 1, "get_device_name": NAME, "get_device_capability": CAPABILITY,
        "get_device_properties": properties, "is_initialized": True, "init": None, "synchronize": None,
        "reset_peak_memory_stats": None, "empty_cache": None, "current_device": 0, "memory_allocated": 2_071_573_504,
        "max_memory_allocated": 2_571_182_080, "memory_reserved": 0, "mem_get_info": (MEMORY, MEMORY),
        "get_arch_list": ["sm_90", "sm_120"], "is_bf16_supported": True,
    }  # fmt: skip
    for name, value in values.items():
        setattr(cuda, name, lambda *a, _value=value, **k: _value)
    cuda.Event = Event
    torch.version.cuda = "13.0"
    torch.__version__ = "2.13.0+cu130"
    to, module_to = torch.Tensor.to, torch.nn.Module.to

    def is_cuda(value):
        return str(value).startswith("cuda")

    def swallow(real):
        def moved(self, *args, **kwargs):
            args = tuple(arg for arg in args if not is_cuda(arg))
            kwargs = {key: value for key, value in kwargs.items() if not is_cuda(value) and key != "non_blocking"}
            return real(self, *args, **kwargs) if args or kwargs else self

        return moved

    torch.Tensor.to, torch.nn.Module.to = swallow(to), swallow(module_to)
    torch.Tensor.cuda = lambda self, *a, **k: self
    torch.nn.Module.cuda = lambda self, *a, **k: self
    for name in ("randn", "ones", "empty", "zeros", "full"):
        real = getattr(torch, name)

        def made(*args, _real=real, **kwargs):
            if is_cuda(kwargs.get("device")):
                kwargs.pop("device")
            return _real(*args, **kwargs)

        setattr(torch, name, made)
