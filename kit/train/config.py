"""What to train and how: one frozen value, checked once where it is made."""

from __future__ import annotations

import dataclasses

from kit.errors import UsageError

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


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the smoke run: GPT-2 124M, 14 steps of 4 × 64 in float32.

    model: a key of `MODELS`. weights: 'random' is a seeded initialisation, 'pretrained'
    loads `gpt2` through the Hugging Face cache or hub. dataset: 'dev-reasoning-v2' or a
    path. dtype: 'float32' is IEEE, 'tf32' allows TF32 matrix products, 'bfloat16' is
    autocast over float32 weights. lr is constant. max_grad_norm: gradients are clipped to
    this global norm. engine: what computes a step; each gives the same losses.
    """

    model: str = "gpt2"
    weights: str = "random"
    dataset: str = "dev-reasoning-v2"
    device: str = "cuda"
    dtype: str = "float32"
    batch_size: int = 4
    seq_len: int = 64
    steps: int = 14
    lr: float = 2e-5
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 42
    engine: str = "eager"

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            found, expected = zip(*problems)
            raise UsageError("; ".join(found), expected="; ".join(expected), todo="correct the parameter")

    @property
    def shape(self) -> ModelShape:
        return MODELS[self.model]

    def _problems(self):
        choices = {"model": tuple(MODELS), "weights": WEIGHTS, "device": DEVICES, "dtype": DTYPES, "engine": ENGINES}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                yield f"{name}={getattr(self, name)!r}", f"{name} one of {', '.join(allowed)}"
        for name in ("batch_size", "seq_len", "steps"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)}", f"{name} >= 1"
        if self.model in MODELS and self.seq_len > self.shape.n_positions:
            limit = self.shape.n_positions
            yield f"seq_len={self.seq_len}", f"seq_len <= {limit}, the longest that {self.model} was made for"
        if self.seq_len == 1:
            yield "seq_len=1", "seq_len >= 2, since a token is predicted from the one before it"
        for name in ("lr", "weight_decay"):
            if not 0 <= getattr(self, name) < 10:
                yield f"{name}={getattr(self, name)}", f"0 <= {name} < 10"
        if not self.max_grad_norm > 0:
            yield f"max_grad_norm={self.max_grad_norm}", "max_grad_norm > 0"
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


def matmul_parameters(shape: ModelShape) -> int:
    """Weights that meet a matrix product in the forward pass; the tied head counts once, lookups do not."""
    return 12 * shape.n_layer * shape.n_embd**2 + shape.vocab_size * shape.n_embd


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
    """FLOP of those products over `positions` = B × T: 6 per weight and position (see `step_flop`)."""
    return 6 * matmul_parameters(shape) * positions


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
