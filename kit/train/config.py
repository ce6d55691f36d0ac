"""What to train and how: one frozen value, checked once where it is made."""

import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from kit.errors import UsageError
from kit.records import from_json, to_json

DEVICES = ("cuda", "cpu")
DTYPES = ("float32", "tf32", "bfloat16")
WEIGHTS = ("random", "pretrained")
# From the baseline to the fastest: Hugging Face's Trainer, the plain loop, torch.compile, one CUDA graph a
# step without torch.compile (which starts at once), and with it.
ENGINES = ("trainer", "eager", "compiled", "captured", "graphed")
# What a datasheet calls the peak that a run of this dtype is measured against.
DATASHEET_DTYPES = {"float32": "fp32", "tf32": "tf32", "bfloat16": "bf16"}


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """A GPT-2 architecture: layers, heads, embedding width, vocabulary and longest sequence."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int = 50257
    n_positions: int = 1024


# gpt2: Radford et al. 2019, the 124M model as in Hugging Face's `gpt2` config.json.
# tiny: our own, small enough for two CPU cores; only the vocabulary is GPT-2's.
MODELS = {
    "gpt2": ModelShape(n_layer=12, n_head=12, n_embd=768),
    "tiny": ModelShape(n_layer=2, n_head=4, n_embd=128, n_positions=256),
}


def parameter(
    default: Any, help: str, *, choices: Iterable[str] = (), least: float | None = None, below: float | None = None
) -> Any:
    """A field of a plan, with its meaning and what it may be. Written here once: the options of a command, the check
    of a parameter file and the notebooks' parameters follow from it."""
    limits = {"choices": tuple(choices), "least": least, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, **limits})


def refuse_wrong(plan: Any, together: Iterator[tuple[str, str]]) -> None:
    """Raises UsageError with all that is wrong with a plan. together: what is wrong with the fields together, found and
    expected; it is asked only where each field is right by itself."""
    problems = [*_wrong_fields(plan)] or [(*problem, "") for problem in together]
    if problems:
        found, expected, meant = zip(*problems)
        hints = [word for word in meant if word]
        todo = f"did you mean {' and '.join(hints)}?" if hints else "correct the parameter"
        raise UsageError("; ".join(found), expected="; ".join(expected), todo=todo)


def _wrong_fields(plan: Any) -> Iterator[tuple[str, str, str]]:
    """What is wrong with single fields: what was found, what is expected, and what may have been meant."""
    kinds = typing.get_type_hints(type(plan))
    for field in dataclasses.fields(plan):
        value, kind, limits = getattr(plan, field.name), kinds[field.name], field.metadata
        found, meant = f"{field.name}={value!r}", ""
        try:
            from_json(kind, to_json(value), field.name)
        except (UsageError, TypeError, ValueError):
            words = {int: "a whole number", float: "a number", str: "text"}
            # '14' where a number belongs.
            with contextlib.suppress(TypeError, ValueError):
                meant = f"{field.name}={kind(value)!r}" if isinstance(value, str) else ""
            yield found, f"{field.name} as {words.get(kind, kind)}", meant
            continue
        choices, least, below = (limits.get(name) for name in ("choices", "least", "below"))
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if choices and one not in choices:
                # Far enough that nobody who means a GPU is led to the CPU.
                close = difflib.get_close_matches(one, choices, n=1, cutoff=0.7)
                yield found, f"{field.name} one of {', '.join(choices)}", f"{close[0]!r}" if close else ""
            elif (least is not None and not one >= least) or (below is not None and not one < below):
                wanted = f"{least} <= {field.name}" + (f" < {below}" if below is not None else "")
                yield found, wanted, ""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the smoke run: GPT-2 124M, 14 steps of 4 × 64 in float32."""

    model: str = parameter("gpt2", "gpt2 (124M) or tiny", choices=MODELS)
    weights: str = parameter("random", "random (seeded), or pretrained (gpt2 from cache or hub)", choices=WEIGHTS)
    dataset: str = parameter("dev-reasoning-v2", "the kit's own, or the path of a .jsonl or .txt file")
    device: str = parameter("cuda", "cuda, or cpu (a rehearsal)", choices=DEVICES)
    dtype: str = parameter("float32", "float32 (IEEE), tf32, or bfloat16 (autocast)", choices=DTYPES)
    batch_size: int = parameter(4, "samples a step", least=1)
    seq_len: int = parameter(64, "tokens a sample; shorter ones are padded, and padding is not counted", least=2)
    steps: int = parameter(14, "optimizer steps", least=1)
    lr: float = parameter(2e-5, "learning rate of AdamW, constant", least=0, below=10)
    weight_decay: float = parameter(0.01, "of AdamW", least=0, below=10)
    max_grad_norm: float = parameter(1.0, "gradients are clipped to this global norm", least=1e-9)
    seed: int = parameter(42, "of the initialisation and of the order of the data")
    engine: str = parameter("eager", "what computes a step; each gives the same losses", choices=ENGINES)

    def __post_init__(self) -> None:
        refuse_wrong(self, self._problems())

    @property
    def shape(self) -> ModelShape:
        return MODELS[self.model]

    def _problems(self) -> Iterator[tuple[str, str]]:
        limit = self.shape.n_positions
        if self.seq_len > limit:
            yield f"seq_len={self.seq_len}", f"seq_len <= {limit}, the longest that {self.model} was made for"
        if self.model != "gpt2" and self.weights == "pretrained":
            yield f"weights=pretrained with model={self.model}", "model=gpt2: only it has published weights"


# How much arithmetic a training step needs, counted from the shape of the model.
#
# Checked in the tests against torch's own FlopCounterMode.


def parameters(shape: ModelShape) -> int:
    """Trainable parameters of GPT-2 with tied embeddings: 124,439,808 for the 124M model."""
    d = shape.n_embd
    block = 12 * d * d + 13 * d
    return (shape.vocab_size + shape.n_positions) * d + shape.n_layer * block + 2 * d


def matrix_layers(shape: ModelShape) -> int:
    """Layers that multiply by a weight matrix: four a block, and the head."""
    return 4 * shape.n_layer + 1


def weight_products(shape: ModelShape) -> int:
    """Matrix products with weights in one step: each layer's once forward, twice backward."""
    return 3 * matrix_layers(shape)


def weight_tensors(shape: ModelShape) -> int:
    """Tensors that hold GPT-2's weights: twelve a block, two embeddings and the last normalisation; 148 for 124M."""
    return 12 * shape.n_layer + 4


def weight_flop(shape: ModelShape, positions: int) -> int:
    """FLOP of those products over `positions` = B × T: 6 per weight and position (see `step_flop`).

    The weights are those that meet a product in the forward pass; the tied head counts once, lookups do not.
    """
    return 6 * (12 * shape.n_layer * shape.n_embd**2 + shape.vocab_size * shape.n_embd) * positions


def step_flop(shape: ModelShape, *, batch_size: int, seq_len: int) -> int:
    """FLOP of forward and backward over B × T positions; padding costs as much as text.

    6 per weight and position (Kaplan et al. 2020, 2001.08361, section 2.1) plus attention,
    12 · L · T · C per position with the full T × T square (Chowdhery et al. 2022,
    2204.02311, appendix B). Causal kernels may do about half of the attention part.
    """
    positions = batch_size * seq_len
    attention = 12 * shape.n_layer * seq_len * shape.n_embd
    return weight_flop(shape, positions) + positions * attention


def least_step_flop(shape: ModelShape, *, batch_size: int, seq_len: int) -> int:
    """FLOP that no causal step can do without: attention over the half of the square that is not masked.

    6 · L · C · (T + 1) per position: (T + 1) / 2 keys on average where `step_flop` counts T.
    """
    positions = batch_size * seq_len
    return weight_flop(shape, positions) + positions * 6 * shape.n_layer * (seq_len + 1) * shape.n_embd


def adamw_step_bytes(shape: ModelShape, dtype: str = "float32") -> int:
    """Least bytes that a step with clipping and an optimizer of its own moves for weights, gradients and moments.

    Bytes a parameter in float32 and TF32, 44: weight read in forward and backward (8), gradient
    written (4), read once for its norm (4), AdamW reads weight, gradient, two moments and writes
    weight and two moments (28). In bfloat16, 36: weight read twice (4), gradient written (2) and
    read for its norm (2), AdamW as before with a gradient of 2 and a bfloat16 copy to write (28).
    Activations come on top.
    """
    return (36 if dtype == "bfloat16" else 44) * parameters(shape)
