"""The training step as one CUDA graph: what a plain loop would do without the host between its kernels.

Loss and gradients of any causal language model of transformers come in parts that a graph can hold. The embedding lookup
and the head with its loss are done here, since the libraries' own cost most of what can be saved; the body in between is
the model's code. A model that is more than these three parts is refused by name.
"""

import importlib.util
from collections.abc import Sequence

import torch

from kit.errors import UsageError
from kit.train.config import TrainConfig
from kit.train.engines import random_batch
from kit.train.model import Unsuitable, autocast, compiled, compute_dtype, fast_kernels, twin_of

# Difference of the first loss from that of the model's own forward pass, relative to it (to 1 where it is less).
FIRST_LOSS_LIMITS = {"float32": 1e-5, "tf32": 1e-3, "bfloat16": 5e-3}

_WARM_UP_STEPS = 2

# Tokens at a time in the check of the first loss; the model's own forward holds all of their logits in float32.
_CHECKED_TOKENS = 4096


class CapturedEngine:
    """The whole step as one CUDA graph: forward, backward, our loss, and clipping with AdamW in two kernels.

    In bfloat16 the forward pass computes with bfloat16 copies of the float32 weights, which the
    update writes; autocast would make them anew at every step.
    """

    name, is_fallback, _is_compiled = "captured", False, False

    @staticmethod
    def missing(model, config: TrainConfig) -> str | None:
        """Why it cannot run here; None where it can."""
        if config.device != "cuda":
            return "a CUDA graph needs a CUDA device"
        if importlib.util.find_spec("triton") is None:
            return "its kernels need Triton, and it is not installed"
        return None

    def __init__(self, model, config: TrainConfig) -> None:
        self._config, self._step = config, FlatStep(model, config, is_compiled=self._is_compiled)
        self._input_ids, self._labels = random_batch(model, config)
        own = own_loss(model, self._input_ids, self._labels, config)
        ours = float(self._step.backward(self._input_ids, self._labels)[0])
        # A model's own loss may be another one, as of a scaled or capped head. Written so that NaN is refused as well; a
        # loss near 0, of a batch known by heart, is compared absolutely.
        if not abs(ours - own) <= FIRST_LOSS_LIMITS[config.dtype] * max(1.0, abs(own)):
            raise Unsuitable(f"its first loss would be {ours:.6f} where the model's own is {own:.6f}")
        self._capture()
        self.optimizer = FlatAdamW(self._step.flat, config)
        over = " over torch.compile" if self._is_compiled else ""
        copies = ", bfloat16 copies of the weights" if self._step.flat.shadow is not None else ""
        self.note = f"one CUDA graph a step{over}{copies}, fused loss, clipping and AdamW"

    def _capture(self) -> None:
        """Warms up on a stream of its own, as capturing needs, and captures. The weights end as they were."""
        flat = self._step.flat
        before = flat.master.clone()
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_STEPS):
                    loss, gradients = self._step.backward(self._input_ids, self._labels)
                    flat.point_to(gradients)
                    flat.update(gradients, self._config)
            torch.cuda.current_stream().wait_stream(side)
            del loss, gradients
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                loss, gradients = self._step.backward(self._input_ids, self._labels)
                flat.update(gradients, self._config)
                self._result = torch.stack((loss, flat.norm))
            flat.point_to(gradients)
        finally:
            flat.master.copy_(before)
            flat.restart()

    def step(self, input_ids, labels):
        if input_ids.shape != self._input_ids.shape:
            raise UsageError(
                f"a batch of {tuple(input_ids.shape)}",
                expected=f"{tuple(self._input_ids.shape)}, as captured",
                todo="build another engine for another shape",
            )
        self._input_ids.copy_(input_ids)
        self._labels.copy_(labels)
        self._graph.replay()
        loss, grad_norm = self._result.clone()
        return loss, grad_norm

    def restart(self) -> None:
        self._step.flat.restart()


class GraphedEngine(CapturedEngine):
    """The same graph over the compiled model: fewer and longer kernels, after half a minute of compiling once."""

    name, _is_compiled = "graphed", True


@torch.no_grad()
def own_loss(model, input_ids, labels, config: TrainConfig) -> float:
    """The mean loss by the model's own forward pass, a few rows at a time; NaN where no label is supervised."""
    rows = max(1, _CHECKED_TOKENS // input_ids.shape[1])
    total, whole = 0.0, int((labels[:, 1:] >= 0).sum())
    for ids, targets in zip(input_ids.split(rows), labels.split(rows)):
        if count := int((targets[:, 1:] >= 0).sum()):
            with autocast(config):
                total += float(model(input_ids=ids, labels=targets).loss) * count
    return total / whole if whole else float("nan")


# All weights of a model in one flat float32 buffer, beside their bfloat16 copy and AdamW's moments.
#
# One kernel then takes the norm of every gradient, and one updates every weight. The gradients
# stay where the backward pass left them; a table of addresses says where. The buffer is a
# multiple of `CHUNK` for each tensor, so that a chunk never holds two of them.

# Measured on an H100: 1,024 to 4,096 move bytes equally fast, at 2.97 TB/s.
CHUNK = 2048
# torch.optim.AdamW's defaults, which the eager engine has.
BETAS, EPS = (0.9, 0.999), 1e-8
# Rows of the head are filled up to a multiple of this, which the matrix units like; the filling stays 0.
VOCAB_MULTIPLE = 64


class FlatWeights:
    """Moves the weights of `model` into `master` (its parameters become views) and keeps what AdamW needs.

    dtype: of the forward pass. In bfloat16 `shadow` holds the rounded weights that it computes
    with; in float32 it is None. padded: names of the parameters whose rows are filled up.
    """

    def __init__(self, model, dtype: torch.dtype, padded: Sequence[str]) -> None:
        self.parameters, self._sizes, self._starts, total = dict(model.named_parameters()), {}, {}, 0
        for name, parameter in self.parameters.items():
            rows, whole = len(parameter), VOCAB_MULTIPLE if name in padded else 1
            self._sizes[name] = -(-rows // whole) * whole * (parameter.numel() // rows)
            self._starts[name] = total
            total += -(-self._sizes[name] // CHUNK) * CHUNK
        device = next(iter(self.parameters.values())).device
        self.master = torch.zeros(total, dtype=torch.float32, device=device)
        for name, parameter in self.parameters.items():
            view = self.view(self.master, name)
            view.copy_(parameter.detach())
            parameter.data = view
        self.shadow = self.master.to(dtype) if dtype != torch.float32 else None
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.master), torch.zeros_like(self.master)
        self.step, self.norm = (torch.zeros((), dtype=torch.float32, device=device) for _ in range(2))
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
        parameter = self.parameters[name]
        size = self._sizes[name] if filled else parameter.numel()
        return flat[self._starts[name] :][:size].view(-1, *parameter.shape[1:])

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
        from kit.extras.graphed.kernels import adamw, square_sum

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


class FlatStep:
    """Loss and gradients of a causal language model in three parts: embedding lookup, body, head with its loss."""

    def __init__(self, model, config: TrainConfig, *, is_compiled: bool) -> None:
        head, lookup = model.get_output_embeddings(), model.get_input_embeddings()
        if not isinstance(head, torch.nn.Linear) or head.bias is not None or not isinstance(lookup, torch.nn.Embedding):
            raise Unsuitable("the head is no plain product with the hidden states")
        if frozen := [name for name, parameter in model.named_parameters() if not parameter.requires_grad]:
            raise Unsuitable(f"{len(frozen)} weights are frozen, {frozen[0]} among them")
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout) and module.p > 0 and module.training:
                raise Unsuitable(f"dropout at {name} would make its losses differ")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._head, self._lookup = names[id(head.weight)], names[id(lookup.weight)]
        self._vocab_size, self._padding_idx = head.weight.shape[0], lookup.padding_idx
        self.flat = FlatWeights(model, compute_dtype(config), padded=(self._head,))
        # What the forward pass computes with: views of the bfloat16 copies, or of the weights themselves.
        flat = self.flat.master if self.flat.shadow is None else self.flat.shadow
        self._parameters = {name: torch.nn.Parameter(self.flat.view(flat, name)) for name in self.flat.parameters}
        self._head_weight = self.flat.view(flat, self._head, filled=True)
        body = twin_of(model, self._parameters).base_model
        self._body = lambda embeds: body(inputs_embeds=embeds, use_cache=False).last_hidden_state
        if is_compiled:
            self._body = compiled(self._body)
        else:
            fuse_gelu(body)
        self._kernels = compute_dtype(config), config.seq_len

    def backward(self, input_ids, labels) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and the gradient of each parameter by name, each in one piece; the head's with its padding rows."""
        inner = {name: p for name, p in self._parameters.items() if name not in (self._head, self._lookup)}
        embeds = torch.nn.functional.embedding(input_ids, self._parameters[self._lookup].detach()).requires_grad_()
        with fast_kernels(*self._kernels):
            hidden = self._body(embeds)
            loss, hidden_grad, head_grad = linear_cross_entropy(
                hidden.detach().flatten(0, 1),
                self._head_weight,
                shifted(labels),
                vocab_size=self._vocab_size,
            )
            grads = torch.autograd.grad(hidden, [embeds, *inner.values()], hidden_grad.view_as(hidden))
        gradients = dict(zip(inner, map(_in_one_piece, grads[1:])))
        rows = self._parameters[self._lookup].shape[0]
        padding = -1 if self._padding_idx is None else self._padding_idx
        lookup_grad = torch.ops.aten.embedding_dense_backward(grads[0], input_ids, rows, padding, False)
        if self._lookup == self._head:
            head_grad[:rows].add_(lookup_grad)
        else:
            gradients[self._lookup] = lookup_grad
        gradients[self._head] = head_grad
        return loss, gradients


def fuse_gelu(body) -> None:
    """GPT-2's GELU in one kernel each way, where transformers writes it out in eight; a compiler does so itself.

    The same function to 2.5e-7; at 64 × 1024 the eight took 72 of 191 ms of a step on an H100.
    """
    from transformers.activations import NewGELUActivation

    for module in list(body.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU(approximate="tanh"))


def _in_one_piece(gradient: torch.Tensor) -> torch.Tensor:
    """Contiguous and at an address that the kernels can read 16 bytes at a time; a copy where it is not."""
    gradient = gradient.contiguous()
    return gradient if gradient.data_ptr() % 16 == 0 else gradient.clone()


# The head with its loss, in chunks of rows so that the logits never stand in memory as a whole.

# Rows of logits at a time: 16,384 × 50,304 in bfloat16 are 1.5 GiB.
ROWS = 16384


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """labels (B, T) -> (B · T): at each position the token that follows, -100 at the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).reshape(-1)


def linear_cross_entropy(hidden, weight, labels, *, vocab_size: int):
    """Loss, gradient of `hidden`, gradient of `weight`. hidden: (N, C), weight: (V, C), labels: (N,) shifted.

    vocab_size: rows of `weight` that are real; those after it are padding.
    """
    supervised = (labels >= 0).sum().to(torch.float32)
    hidden_grad = torch.empty_like(hidden)
    losses, weight_grad = [], None
    for begin in range(0, hidden.shape[0], ROWS):
        part = slice(begin, begin + ROWS)
        logits = hidden[part] @ weight.T
        losses.append(triton_row_loss_(logits, labels[part], supervised, vocab_size))
        torch.mm(logits, weight, out=hidden_grad[part])
        if weight_grad is None:
            weight_grad = logits.T @ hidden[part]
        else:
            weight_grad.addmm_(logits.T, hidden[part])
    return torch.cat(losses).sum(), hidden_grad, weight_grad


def triton_row_loss_(logits, labels, supervised, vocab_size: int) -> torch.Tensor:
    """Turns the logits into their gradient, in place, and returns each row's share of the mean loss."""
    from kit.extras.graphed.kernels import cross_entropy

    losses = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    cross_entropy[(logits.shape[0],)](
        logits, labels, losses, supervised, row_length=logits.stride(0), vocab_size=vocab_size, block=4096, num_warps=16
    )
    return losses
