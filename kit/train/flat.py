"""All weights of a model in one flat float32 buffer, beside their bfloat16 copy and AdamW's moments.

One kernel then takes the norm of every gradient, and one updates every weight. The gradients
stay where the backward pass left them; a table of addresses says where. The buffer is a
multiple of `CHUNK` for each tensor, so that a chunk never holds two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kit.train.config import TrainConfig

# Measured on an H100: 1,024 to 4,096 move bytes equally fast, at 2.97 TB/s.
CHUNK = 2048
# torch.optim.AdamW's defaults, which the eager engine has.
BETAS, EPS = (0.9, 0.999), 1e-8
# Rows of the head are filled up to a multiple of this, which the matrix units like; the filling stays 0.
VOCAB_MULTIPLE = 64


def _filled(parameter: torch.Tensor) -> int:
    """Elements of a matrix whose rows are filled up."""
    return -(-parameter.shape[0] // VOCAB_MULTIPLE) * VOCAB_MULTIPLE * parameter.shape[1]


class FlatWeights:
    """Moves the weights of `model` into `master` (its parameters become views) and keeps what AdamW needs.

    dtype: of the forward pass. In bfloat16 `shadow` holds the rounded weights that it computes
    with; in float32 it is None. padded: names of the parameters whose rows are filled up.
    """

    def __init__(self, model, dtype: torch.dtype, padded: Sequence[str]) -> None:
        self.parameters = dict(model.named_parameters())
        self._sizes = {name: _filled(p) if name in padded else p.numel() for name, p in self.parameters.items()}
        self._starts, total = {}, 0
        for name, size in self._sizes.items():
            self._starts[name] = total
            total += -(-size // CHUNK) * CHUNK
        device = next(iter(self.parameters.values())).device
        self.master = torch.zeros(total, dtype=torch.float32, device=device)
        for name, parameter in self.parameters.items():
            view = self.view(self.master, name)
            view.copy_(parameter.detach())
            parameter.data = view
        self.shadow = self.master.to(dtype) if dtype != torch.float32 else None
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.step = torch.zeros((), dtype=torch.float32, device=device)
        self.norm = torch.zeros((), dtype=torch.float32, device=device)
        self._betas = torch.tensor(BETAS, dtype=torch.float64, device=device)
        self._addresses = torch.zeros(total // CHUNK, dtype=torch.int64, device=device)
        self._counts = torch.tensor(
            [min(CHUNK, size - begin) for size in self._sizes.values() for begin in range(0, size, CHUNK)],
            dtype=torch.int32,
            device=device,
        )
        self._partial = torch.zeros(total // CHUNK, dtype=torch.float32, device=device)

    def view(self, flat: torch.Tensor, name: str, *, filled: bool = False) -> torch.Tensor:
        """The part of a flat buffer that is `name`'s, in its shape; `filled`: with its padding rows."""
        parameter, start = self.parameters[name], self._starts[name]
        if filled:
            return flat[start : start + self._sizes[name]].view(-1, *parameter.shape[1:])
        return flat[start : start + parameter.numel()].view(parameter.shape)

    def compute_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What the forward pass computes with: views of the shadow, or of the weights themselves."""
        flat = self.master if self.shadow is None else self.shadow
        return {name: torch.nn.Parameter(self.view(flat, name)) for name in self.parameters}

    def restart(self) -> None:
        """Fresh moments, and the shadow of the weights as they are now."""
        for tensor in (self.exp_avg, self.exp_avg_sq, self.step):
            tensor.zero_()
        if self.shadow is not None:
            self.shadow.copy_(self.master)

    def point_to(self, gradients: dict[str, torch.Tensor]) -> None:
        """Tells the kernels where each gradient lies. It must lie there in one piece, and stay."""
        addresses: list[int] = []
        for name, size in self._sizes.items():
            begin, width = gradients[name].data_ptr(), gradients[name].element_size()
            addresses.extend(range(begin, begin + size * width, CHUNK * width))
        self._addresses.copy_(torch.tensor(addresses, dtype=torch.int64))

    def update(self, gradients: dict[str, torch.Tensor], config: TrainConfig) -> None:
        """One AdamW step from the gradients that `point_to` was told of. Launches only, waits for nothing."""
        from kit.train.kernels import adamw, square_sum

        like = next(iter(gradients.values()))
        grid = (self._counts.numel(),)
        square_sum[grid](self._addresses, self._counts, like, self._partial, block=CHUNK)
        torch.sum(self._partial, 0, out=self.norm)
        self.norm.sqrt_()
        self.step.add_(1)
        # In float64: 1 - 0.999 ** step loses five of float32's digits at the first steps.
        corrections = 1 - self._betas**self.step
        adamw[grid](
            self.master,
            self.exp_avg,
            self.exp_avg_sq,
            self.shadow,
            self._addresses,
            self._counts,
            like,
            self.norm,
            corrections,
            config.lr,
            config.weight_decay,
            config.max_grad_norm,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS,
            has_shadow=self.shadow is not None,
            block=CHUNK,
        )


class FlatAdamW(torch.optim.Optimizer):
    """AdamW's state as torch's optimizers show it: views of the flat buffers. The engine's graph updates them."""

    def __init__(self, flat: FlatWeights, config: TrainConfig) -> None:
        super().__init__(
            flat.parameters.values(), {"lr": config.lr, "betas": BETAS, "eps": EPS, "weight_decay": config.weight_decay}
        )
        for name, parameter in flat.parameters.items():
            self.state[parameter] = {
                "step": flat.step,
                "exp_avg": flat.view(flat.exp_avg, name),
                "exp_avg_sq": flat.view(flat.exp_avg_sq, name),
            }

    def step(self, closure=None):
        raise RuntimeError("the engine updates the weights inside its own step")
