"""kit proves that PyTorch trains natively on this machine's NVIDIA GPU.

Importing it does nothing: no torch, no driver call, no file read. Each public
name is loaded from its module when it is first used.
"""

from importlib import import_module

__version__ = "0.2.0"

# public name -> module that defines it; where it is called otherwise there, or is the module itself, `module:name`.
# `kit.train` and `kit.sweep` are folders, so what they do is called run_training and run_sweep here.
_PUBLIC = {
    "Check": "kit.records",
    "GpuGuardCallback": "kit.train.guard",
    "KitError": "kit.errors",
    "MachineFacts": "kit.gpu.facts",
    "Outcome": "kit.records",
    "ScalePlan": "kit.extras.scale.ranks",
    "ScaleRow": "kit.extras.scale.ranks",
    "Scaling": "kit.extras.scale.ranks",
    "Session": "kit.session",
    "SweepPlan": "kit.sweep.table",
    "Table": "kit.show",
    "TrainConfig": "kit.train.config",
    "Verdict": "kit.records",
    "bench": "kit.sweep.bench",
    "check": "kit.gpu.check",
    "control_check": "kit.evidence.conclude",
    "first_steps": "kit.sweep.trial",
    "gpu_guard": "kit.train.guard",
    "plots": "kit.plots:",
    "probe": "kit.gpu.probe",
    "recorded_machines": "kit.session",
    "run_control": "kit.train.control",
    "run_sweep": "kit.sweep.sweep:sweep",
    "run_training": "kit.train.train:train",
    "scale": "kit.extras.scale.scale",
    "scale_plots": "kit.extras.scale.figures:",
    "scaled_step": "kit.extras.scale.ranks",
    "train_ranks": "kit.extras.scale.scale",
}

__all__ = sorted(_PUBLIC) + ["__version__"]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError("module 'kit' has no attribute %r" % name)
    module, colon, other = _PUBLIC[name].partition(":")
    found = import_module(module)
    return found if colon and not other else getattr(found, other or name)


def __dir__():
    return __all__
