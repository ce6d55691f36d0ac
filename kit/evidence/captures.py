"""The captures of a bundle: what other programs print of this machine while the notebooks run."""

from __future__ import annotations

import re
import sys
import threading

from kit.evidence.bundle import Bundle
from kit.gpu.probe import SMI_QUERY, Capture, capture

_SMI_EVERY_S = 2.0
_TORCH_VERSION = (
    "import torch; print('torch', torch.__version__); print('built for CUDA', torch.version.cuda); "
    "print('cuDNN', torch.backends.cudnn.version()); print('code for', *torch.cuda.get_arch_list())"
)


class Captures:
    """What other programs print of this machine, taken beside the notebooks.

    nvidia-smi is asked every two seconds while the training notebook runs, from this process,
    which does not train: of those the one with the most memory in use is kept.
    """

    def __init__(self, bundle: Bundle, device: str) -> None:
        self._bundle, self._device = bundle, device
        self.is_training = False
        self._stop = threading.Event()
        self._smi: list[tuple[str, Capture]] = []
        self._texts: dict[str, Capture] = {}

    def __enter__(self) -> Captures:
        self._threads = [threading.Thread(target=self._programs, daemon=True)]
        if self._device == "cuda":
            self._threads.append(threading.Thread(target=self._watch, daemon=True))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)
        facts = self._bundle.path / "facts" / "begin.json"
        if facts.exists():
            argv = ("-m", "kit", "check", "--facts", str(facts), "--device", self._device)
            self._texts["cuda_check.txt"] = capture(sys.executable, *argv)
        for name, found in self._texts.items():
            self._bundle.write(name, str(found))
        smi = self._smi or [("before the notebooks", capture("nvidia-smi", *SMI_QUERY))]
        busiest = [max(smi[1:], key=lambda pair: _memory_used(pair[1]))] if len(smi) > 1 else []
        self._bundle.write("nvidia_smi.txt", "\n".join(f"# {when}\n{found}" for when, found in [smi[0], *busiest]))

    def _programs(self) -> None:
        self._texts["torch_version.txt"] = capture(sys.executable, "-c", _TORCH_VERSION, timeout_s=120)
        self._texts["env_info.txt"] = capture(sys.executable, "-m", "torch.utils.collect_env", timeout_s=120)

    def _watch(self) -> None:
        self._smi.append(("before the notebooks", capture("nvidia-smi", *SMI_QUERY)))
        while not self._stop.wait(_SMI_EVERY_S):
            if self.is_training:
                self._smi.append(("while the training notebook ran", capture("nvidia-smi", *SMI_QUERY)))


def _memory_used(found: Capture) -> int:
    """MiB in use over all cards, from the column memory.used of nvidia-smi's CSV; 0 where it printed none."""
    return sum(int(mib) for mib in re.findall(r"MiB, (\d+) MiB", found.text))
