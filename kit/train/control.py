"""Runs the negative control: a child process with the GPU hidden that claims to train on it."""

import dataclasses
import secrets
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

from kit.errors import KitError
from kit.process import child_environment
from kit.records import dumps, from_json, loads
from kit.train.config import TrainConfig
from kit.train.steps import ControlRecord, StepRecord, Timings, TrainingRun

_TIMEOUT_S = 120


def run_control() -> ControlRecord:
    """Starts the child and reads its record. Raises KitError where it gave none.

    The record comes through a file: what else prints in the child, at its start or its end, is none of it.
    """
    # On Windows an empty mask is no mask: -1 hides every GPU everywhere. Kineto's level silences the lines that the
    # profiler prints for each start and stop.
    hidden = child_environment(CUDA_VISIBLE_DEVICES="-1", KINETO_LOG_LEVEL="6")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "kit.train.control", str(record)], env=hidden,
                capture_output=True, timeout=_TIMEOUT_S, check=False,
            )  # fmt: skip
            found = from_json(ControlRecord, loads(record.read_bytes()))
        except subprocess.TimeoutExpired as error:
            raise _no_record(f"no answer within {_TIMEOUT_S} s") from error
        except (OSError, ValueError, KitError) as error:
            last = done.stderr.decode("utf-8", errors="replace").strip().splitlines()[-1:] or ["no output"]
            raise _no_record(f"exit code {done.returncode}: {last[0]}") from error
    return dataclasses.replace(found, seconds=time.perf_counter() - start)


def _no_record(why: str) -> KitError:
    return KitError(
        f"the negative control gave no record ({why})",
        expected="one JSON record",
        todo="run python -m kit.train.control record.json by hand and read its error",
    )


# --- the child ----------------------------------------------------------------------


def _child() -> ControlRecord:
    import torch

    from kit.gpu.probe import probe

    facts = probe(proof_device="cuda")
    run, steps = train_toy(TrainConfig(model="tiny", device="cpu", batch_size=2, seq_len=32, steps=6, lr=0.1))
    lie = dataclasses.replace(run.config, device="cuda")
    return ControlRecord(facts, dataclasses.replace(run, config=lie), steps, 0.0, torch.cuda.device_count())


def train_toy(config: TrainConfig) -> tuple[TrainingRun, tuple[StepRecord, ...]]:
    """The kit's own loop and witnesses over a toy model, which needs torch alone and starts in seconds."""
    import torch

    from kit.train import witness
    from kit.train.data import batch_of
    from kit.train.loop import training_steps

    torch.manual_seed(config.seed)
    model = _toy_model(torch)
    optimizer = _Sgd(torch, model, config.lr)
    generators = (torch.Generator().manual_seed(step) for step in range(config.steps))
    ids = [torch.randint(1024, (config.batch_size, config.seq_len), generator=generator) for generator in generators]
    batches = [batch_of(one, torch.ones_like(one)) for one in ids]
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    watch = witness.Watch(model, optimizer, dataclasses.replace(config, device="cuda"), secrets.token_hex(8))
    before = witness.canary_loss(model, batches[0], config)
    began = time.perf_counter()
    steps = tuple(training_steps(model, optimizer, batches, config, began_s=began, watch=watch))
    after = witness.canary_loss(model, batches[0], config)
    learning = witness.measure_learning(model, initial, before, after)
    run = TrainingRun(
        config=config, device_name="CPU", weights_note="toy model", dataset_sha256="", dataset_rows=10**6,
        parameters=learning.total_parameters, timings=Timings(), audits=tuple(watch.audits), learning=learning,
        profile=witness.profile_step(model, optimizer, batches[0], config), nonce=watch.nonce,
    )  # fmt: skip
    return run, steps


def _toy_model(torch):
    class Toy(torch.nn.Module):
        """An embedding and a head: two matrix products a step are enough to be seen."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(1024, 64)
            self.head = torch.nn.Linear(64, 1024)

        def forward(self, input_ids, labels):
            logits = self.head(self.embedding(input_ids))[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            return types.SimpleNamespace(loss=loss)

    return Toy()


class _Sgd:
    """Gradient descent with torch's optimizer interface. Making one of torch's own imports its compiler,
    which takes as long as torch itself."""

    def __init__(self, torch, model, lr: float) -> None:
        self._torch = torch
        self.param_groups: list[dict] = [{"params": list(model.parameters()), "lr": lr}]
        self.state: dict = {}

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def step(self) -> None:
        with self._torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter -= self.param_groups[0]["lr"] * parameter.grad
                state = self.state.setdefault(parameter, {"step": 0})
                state["step"] += 1


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(dumps(_child()), encoding="utf-8")
