"""Hugging Face's Trainer on the same batches: what most people use, and the baseline of every table.

It drives its own loop, so it is measured from outside: by the host's clock at `on_step_end`,
after waiting for the device. Nothing of it is tuned and nothing is slowed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
import time
from collections.abc import Sequence

import torch

from kit.train.config import TrainConfig
from kit.train.loop import synchronize

NOTE = "Hugging Face's Trainer with its defaults, a constant learning rate and nothing logged or saved"


@dataclasses.dataclass(frozen=True)
class TrainerRun:
    """losses: of each step. step_s: from one `on_step_end` to the next, the first from `on_train_begin`.

    samples: counted in the batches. runtime_s: `train_runtime` as the Trainer reports it.
    """

    losses: tuple[float, ...]
    step_s: tuple[float, ...]
    samples: int
    runtime_s: float


def missing_trainer() -> str | None:
    """Why the Trainer cannot run here; None where it can."""
    if importlib.util.find_spec("accelerate") is None:
        return "Hugging Face's Trainer needs the package accelerate, and it is not installed"
    return None


def run_trainer(model, config: TrainConfig, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> TrainerRun:
    """Trains `model` on `batches` of (input_ids, labels), each (B, T), in their order, one step a batch.

    Only its weights are changed: accelerate wraps the forward pass for bfloat16, and that is undone.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback

    losses: list[torch.Tensor] = []
    ends: list[float] = []

    class Recorded(Trainer):
        def compute_loss(self, *args, **kwargs):
            out = super().compute_loss(*args, **kwargs)
            losses.append((out[0] if isinstance(out, tuple) else out).detach())
            return out

        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(dataset or self.train_dataset)

    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            synchronize(config.device)
            ends.append(time.perf_counter())

        on_step_end = on_train_begin

    rows = [
        {"input_ids": ids, "labels": targets}
        for input_ids, labels in batches
        for ids, targets in zip(input_ids.cpu(), labels.cpu())
    ]
    before = set(vars(model))
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Recorded(model, _arguments(config, len(batches), folder), train_dataset=rows, callbacks=[Clock()])
            # Otherwise it divides the loss by the labels before their shift: (T - 1) / T of the mean.
            trainer.model_accepts_loss_kwargs = False
            # It would print its summary to stdout, where an answer as JSON may stand.
            trainer.remove_callback(PrinterCallback)
            metrics = trainer.train().metrics
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)
    steps = tuple(end - start for start, end in zip(ends, ends[1:]))
    return TrainerRun(tuple(float(loss) for loss in losses), steps, len(rows), metrics["train_runtime"])


def _arguments(config: TrainConfig, steps: int, folder: str):
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=config.batch_size,
        max_steps=steps,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        lr_scheduler_type="constant",
        # TF32 is set around the whole run already, by `model.precision`.
        bf16=config.dtype == "bfloat16",
        seed=config.seed,
        use_cpu=config.device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=config.device == "cuda",
    )
    # One GPU, as everything else here: with several in sight it would split each batch over them.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
