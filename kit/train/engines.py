"""What computes a training step: the plain loop, torch.compile, or one CUDA graph for everything.

Each engine takes the same model and gives the same losses. An engine that cannot do its work
here says why and lets the plain loop do it; it never does so in silence (`is_fallback`, `note`).
Hugging Face's Trainer drives its own loop and stands in `trainer`.
"""

import importlib
import importlib.util
import tempfile
import time
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from kit.errors import UsageError
from kit.train.config import TrainConfig
from kit.train.loop import eager_step, synchronize
from kit.train.model import Unsuitable, autocast, build_optimizer, compiled, compute_dtype, fast_kernels, twin_of

# Engines that have to be built for a shape. A wing of the house is reached by name only.
ENGINES = {
    "compiled": "kit.train.engines:CompiledEngine",
    "captured": "kit.extras.graphed.captured:CapturedEngine",
    "graphed": "kit.extras.graphed.captured:GraphedEngine",
}


def build_engine(name: str, model, config: TrainConfig) -> Any:
    """The engine, ready to step: what must be compiled or captured for config's shape is, the weights unchanged.

    model: on config.device, in float32. Call it inside `model.precision(config)`. Raises torch's
    out-of-memory error where the shape does not fit, and UsageError for the Trainer, which has no step.
    """
    if name == "eager":
        return EagerEngine(model, config)
    if name not in ENGINES:
        raise UsageError(
            f"engine={name}",
            expected=f"one of eager, {', '.join(ENGINES)}",
            todo="kit bench and kit sweep run the Trainer; kit train needs an engine with steps",
        )
    try:
        module, _, kind = ENGINES[name].partition(":")
        engine = getattr(importlib.import_module(module), kind)
        reason = engine.missing(model, config)
        if reason is None:
            with warnings.catch_warnings():
                # What torch says while it compiles and nobody here can act on: IEEE products, its own code.
                for known in ("TensorFloat32 tensor", "`torch.jit.script_method` is", r"\s*Online softmax is disabled"):
                    warnings.filterwarnings("ignore", message=known)
                return engine(model, config)
    except Unsuitable as error:
        reason = str(error)
    except Exception as error:  # compilers raise of their own; each is a reason to fall back, except too little memory
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return EagerEngine(model, config, asked_for=name, reason=reason)


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The error that says so, in what led to `error`: a broken capture or a compiler raises another one on top."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error).lower()
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in text or "defaultcpuallocator" in text:
            return error
        error = error.__cause__ or error.__context__
    return None


class EagerEngine:
    """The plain loop; also what runs in place of an engine that cannot, and what every engine looks like.

    note: what it does, or why it fell back; reason: the latter alone, else None. optimizer: with the state of every
    parameter.
    """

    name = "eager"

    def __init__(self, model, config: TrainConfig, *, asked_for: str = "eager", reason: str | None = None) -> None:
        self._model, self._config = model, config
        self.is_fallback, self.reason = reason is not None, reason
        self.note = f"the plain loop instead of {asked_for}: {reason}" if reason else "the plain loop"
        self.restart()

    def step(self, input_ids, labels):
        """One optimizer step. Returns loss and gradient norm as tensors on the device, without waiting.

        input_ids, labels: (B, T) int64 on the device, padding on the right. The same values as `eager_step`.
        """
        loss, grad_norm = eager_step(self._model, self.optimizer, input_ids, labels, self._config)
        return loss.detach(), grad_norm

    def restart(self) -> None:
        """Fresh optimizer state, and the model's weights as somebody has set them since."""
        self._model.zero_grad(set_to_none=True)
        self.optimizer = build_optimizer(self._model, self._config)


class CompiledEngine(EagerEngine):
    """torch.compile around the model's forward and backward pass; clipping and fused AdamW as torch has them."""

    name, is_fallback = "compiled", False
    note = "torch.compile, causal attention without a mask, fused AdamW"

    @staticmethod
    def missing(model, config: TrainConfig) -> str | None:
        """Why it cannot run here; None where it can."""
        if config.device == "cuda" and importlib.util.find_spec("triton") is None:
            return "torch.compile needs Triton for the GPU, and it is not installed"
        return None

    def __init__(self, model, config: TrainConfig) -> None:
        self._model, self._config = model, config
        twin = twin_of(model, dict(model.named_parameters()))
        self._compiled = compiled(lambda ids, labels: twin(input_ids=ids, labels=labels, use_cache=False).loss)
        self._loss_and_backward(*random_batch(model, config))
        self.restart()

    def _loss_and_backward(self, input_ids, labels) -> torch.Tensor:
        with fast_kernels(compute_dtype(self._config), self._config.seq_len), autocast(self._config):
            loss = self._compiled(input_ids, labels)
        loss.backward()
        return loss.detach()

    def step(self, input_ids, labels):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss_and_backward(input_ids, labels)
        grad_norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)
        self.optimizer.step()
        return loss, grad_norm


def random_batch(model, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and labels (B, T) of config's shape on its device, every label supervised."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (config.batch_size, config.seq_len)
    ids = torch.randint(model.get_input_embeddings().weight.shape[0], shape, generator=generator).to(config.device)
    return ids, ids.clone()


# Hugging Face's Trainer on the same batches: what most people use, and the baseline of every table.
#
# It drives its own loop, so it is measured from outside: by the host's clock at `on_step_end`,
# after waiting for the device. Nothing of it is tuned and nothing is slowed.

NOTE = "Hugging Face's Trainer with its defaults, a constant learning rate and nothing logged or saved"


def missing_trainer() -> str | None:
    """Why the Trainer cannot run here; None where it can."""
    if importlib.util.find_spec("accelerate") is None:
        return "Hugging Face's Trainer needs the package accelerate, and it is not installed"
    return None


def run_trainer(model, config: TrainConfig, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> SimpleNamespace:
    """Trains `model` on `batches` of (input_ids, labels), each (B, T), in their order, one step a batch.

    Returns the losses of each step; step_s, from one `on_step_end` to the next, the first from `on_train_begin`; samples,
    counted in the batches; and runtime_s, the `train_runtime` that the Trainer reports.
    Only its weights are changed: accelerate wraps the forward pass for bfloat16, and that is undone.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

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
            arguments = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=config.batch_size,
                max_steps=len(batches),
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
            trainer = Recorded(model, arguments, train_dataset=rows, callbacks=[Clock()])
            # Otherwise it divides the loss by the labels before their shift: (T - 1) / T of the mean.
            trainer.model_accepts_loss_kwargs = False
            # It would print its summary to stdout, where an answer as JSON may stand.
            trainer.remove_callback(PrinterCallback)
            metrics = trainer.train().metrics
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)
    steps = tuple(end - start for start, end in zip(ends, ends[1:]))
    values = tuple(float(loss) for loss in losses)
    return SimpleNamespace(losses=values, step_s=steps, samples=len(rows), runtime_s=metrics["train_runtime"])
