"""Triton kernels of the captured step: AdamW over flat weights, the norm of the gradients, cross-entropy.

Each reads what it needs once and writes it once, so that its floor is the bytes it moves. Nothing here decides anything.
"""

import triton
import triton.language as tl


@triton.jit
def _gradient(addresses, counts, like, block: tl.constexpr):
    """One block of a gradient that lies anywhere: its address and its valid elements come from a table."""
    chunk = tl.program_id(0)
    pointer = tl.multiple_of(tl.load(addresses + chunk).to(like.dtype), 16)
    within = tl.arange(0, block)
    count = tl.load(counts + chunk)
    # Whole groups of 16 bytes, so that loads are wide; torch allocates in steps of 512, so they end in its memory.
    value = tl.load(pointer + within, mask=within < (count + 7) // 8 * 8, other=0.0)
    return tl.where(within < count, value.to(tl.float32), 0.0)


@triton.jit
def square_sum(addresses, counts, like, partial, block: tl.constexpr):
    """partial[chunk] = sum of squares of that chunk of the gradients."""
    gradient = _gradient(addresses, counts, like, block)
    tl.store(partial + tl.program_id(0), tl.sum(gradient * gradient))


@triton.jit
def adamw(
    weights,
    exp_avg,
    exp_avg_sq,
    shadow,
    addresses,
    counts,
    like,
    norm,
    corrections,
    lr,
    weight_decay,
    max_norm,
    beta1: tl.constexpr,
    beta2: tl.constexpr,
    eps: tl.constexpr,
    has_shadow: tl.constexpr,
    block: tl.constexpr,
):
    """torch's AdamW (decoupled decay, Loshchilov and Hutter 2019, 1711.05101) on one chunk of all weights.

    The gradient is clipped on the way in, as `clip_grad_norm_` does; the bfloat16 copy is written on the way out.
    corrections: 1 - beta ** step for both betas.
    """
    gradient = _gradient(addresses, counts, like, block)
    gradient *= tl.minimum(max_norm / (tl.load(norm) + 1e-6), 1.0)
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    first = tl.load(exp_avg + at)
    first += (1 - beta1) * (gradient - first)
    second = beta2 * tl.load(exp_avg_sq + at) + (1 - beta2) * gradient * gradient
    tl.store(exp_avg + at, first)
    tl.store(exp_avg_sq + at, second)
    correction1 = tl.load(corrections).to(tl.float32)
    correction2 = tl.load(corrections + 1).to(tl.float32)
    weight = tl.load(weights + at) * (1 - lr * weight_decay)
    weight -= lr / correction1 * first / (tl.sqrt(second) / tl.sqrt(correction2) + eps)
    tl.store(weights + at, weight)
    if has_shadow:
        tl.store(shadow + at, weight.to(shadow.dtype.element_ty))


@triton.jit
def cross_entropy(
    logits, labels, losses, supervised, row_length: tl.constexpr, vocab_size: tl.constexpr, block: tl.constexpr
):
    """losses[row] = the row's share of the mean loss; its logits become their own gradient, in place.

    Columns from `vocab_size` to `row_length` are padding: outside the softmax, gradient 0.
    Rows labelled -100 have loss and gradient 0. supervised: how many rows are labelled.
    """
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * row_length
    label = tl.load(labels + row)
    scale = tl.where(label >= 0, 1.0 / tl.load(supervised), 0.0)
    # The sum of exponentials in one pass, a running maximum for each lane; of the two factors one is always 1.
    highest = tl.full((block,), -1e30, tl.float32)
    total = tl.zeros((block,), tl.float32)
    for begin in range(0, vocab_size, block):
        column = begin + tl.arange(0, block)
        value = tl.load(start + column, mask=column < row_length, other=float("-inf")).to(tl.float32)
        value = tl.where(column < vocab_size, value, float("-inf"))
        factor = tl.exp(-tl.abs(value - highest))
        total = tl.where(value > highest, total * factor + 1.0, total + factor)
        highest = tl.maximum(highest, value)
    top = tl.max(highest)
    log_sum = top + tl.log(tl.sum(total * tl.exp(highest - top)))
    target = tl.load(start + tl.where(label >= 0, label, 0)).to(tl.float32)
    tl.store(losses + row, (log_sum - target) * scale)
    # Every thread has read the label's logit before its place is overwritten.
    tl.debug_barrier()
    for begin in range(0, row_length, block):
        column = begin + tl.arange(0, block)
        is_real = column < vocab_size
        value = tl.load(start + column, mask=column < row_length, other=0.0).to(tl.float32)
        gradient = tl.exp(value - log_sum) - tl.where(column == label, 1.0, 0.0)
        gradient = tl.where(is_real, gradient * scale, 0.0)
        tl.store(start + column, gradient.to(logits.dtype.element_ty), mask=column < row_length)
