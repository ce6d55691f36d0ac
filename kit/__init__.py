"""kit proves that PyTorch trains natively on this machine's NVIDIA GPU.

Importing it does nothing: no torch, no driver call, no file read. Each public
name is loaded from its module when it is first used.
"""

from importlib import import_module

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "Check": "kit.records",
    "GpuGuardCallback": "kit.train.guard",
    "KitError": "kit.errors",
    "MachineFacts": "kit.gpu.facts",
    "Outcome": "kit.records",
    "Session": "kit.session",
    "TrainConfig": "kit.train.config",
    "Verdict": "kit.records",
    "check": "kit.gpu.check",
    "gpu_guard": "kit.train.guard",
    "probe": "kit.gpu.probe",
}

__all__ = sorted(_PUBLIC) + ["__version__"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError("module 'kit' has no attribute %r" % name)
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return __all__
