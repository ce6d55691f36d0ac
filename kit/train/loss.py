"""The head's loss with its gradients, in chunks of rows, so that the logits of all of them never exist at once.

The same number as transformers' `ForCausalLMLoss`: labels shifted by one, -100 left out, the mean.
"""

from __future__ import annotations

import torch

# Rows of logits at a time: 16,384 × 50,304 in bfloat16 are 1.5 GiB.
ROWS = 16384


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """labels (B, T) -> (B · T): at each position the token that follows, -100 at the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).reshape(-1)


def linear_cross_entropy(hidden, weight, labels, *, vocab_size: int, row_loss_=None, rows: int = ROWS):
    """Loss, gradient of `hidden`, gradient of `weight`. hidden: (N, C), weight: (V, C), labels: (N,) shifted.

    vocab_size: rows of `weight` that are real; those after it are padding. `row_loss_` turns logits
    into their gradient in place and returns each row's loss; the default is plain torch.
    """
    row_loss_ = row_loss_ or torch_row_loss_
    supervised = (labels >= 0).sum().to(torch.float32)
    hidden_grad = torch.empty_like(hidden)
    losses, weight_grad = [], None
    for begin in range(0, hidden.shape[0], rows):
        part = slice(begin, begin + rows)
        logits = hidden[part] @ weight.T
        losses.append(row_loss_(logits, labels[part], supervised, vocab_size))
        torch.mm(logits, weight, out=hidden_grad[part])
        if weight_grad is None:
            weight_grad = logits.T @ hidden[part]
        else:
            weight_grad.addmm_(logits.T, hidden[part])
    return torch.cat(losses).sum(), hidden_grad, weight_grad


def torch_row_loss_(logits, labels, supervised, vocab_size: int) -> torch.Tensor:
    """What the kernel does, in plain torch: the reference of its tests, and the code for the CPU."""
    real = logits[:, :vocab_size].float()
    log_sum = real.logsumexp(dim=1)
    label = labels.clamp(min=0)[:, None]
    is_supervised = labels >= 0
    scale = torch.where(is_supervised, 1 / supervised, 0.0)
    loss = (log_sum - real.gather(1, label)[:, 0]) * scale
    gradient = (real - log_sum[:, None]).exp_()
    gradient.scatter_add_(1, label, -torch.ones_like(label, dtype=gradient.dtype))
    logits[:, :vocab_size] = gradient * scale[:, None]
    logits[:, vocab_size:] = 0
    return loss


def triton_row_loss_(logits, labels, supervised, vocab_size: int) -> torch.Tensor:
    from kit.train.kernels import cross_entropy

    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    cross_entropy[(logits.shape[0],)](
        logits, labels, losses, supervised, row_length=logits.stride(0), vocab_size=vocab_size, block=4096, num_warps=16
    )
    return losses
