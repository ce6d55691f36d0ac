"""How much arithmetic a training step needs, counted from the shape of the model.

Checked in the tests against torch's own FlopCounterMode.
"""

from __future__ import annotations

from kit.train.config import ModelShape


def parameters(shape: ModelShape) -> int:
    """Trainable parameters of GPT-2 with tied embeddings: 124,439,808 for the 124M model."""
    d = shape.n_embd
    block = 12 * d * d + 13 * d
    return (shape.vocab_size + shape.n_positions) * d + shape.n_layer * block + 2 * d


def matmul_parameters(shape: ModelShape) -> int:
    """Weights that meet a matrix product in the forward pass; the tied head counts once, lookups do not."""
    return 12 * shape.n_layer * shape.n_embd**2 + shape.vocab_size * shape.n_embd


def weight_products(shape: ModelShape) -> int:
    """Matrix products with weights in one step: four a block and the head, each once forward, twice backward."""
    return 3 * (4 * shape.n_layer + 1)


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
