"""Loss and gradients of any causal language model of transformers, in parts that a graph can hold.

The embedding lookup and the head with its loss are done here, since the libraries' own cost
most of what can be saved; the body in between is the model's code. A model that is more than
these three parts is refused by name.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch

from kit.train.attention import fast_kernels, use_causal_attention
from kit.train.config import TrainConfig
from kit.train.flat import FlatWeights
from kit.train.loss import linear_cross_entropy, shifted, triton_row_loss_


class Unsuitable(Exception):
    """This model cannot be computed by this engine; the text says why."""


class FlatStep:
    """Loss and gradients of a causal language model in three parts: embedding lookup, body, head with its loss."""

    def __init__(self, model, config: TrainConfig, *, is_compiled: bool) -> None:
        if reason := _unsuitable(model):
            raise Unsuitable(reason)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._head = names[id(model.get_output_embeddings().weight)]
        self._lookup = names[id(model.get_input_embeddings().weight)]
        self.flat = FlatWeights(model, compute_dtype(config), padded=(self._head,))
        self._parameters = self.flat.compute_parameters()
        twin = twin_of(model, self._parameters)
        self._vocab_size = model.get_output_embeddings().weight.shape[0]
        self._padding_idx = model.get_input_embeddings().padding_idx
        flat = self.flat.master if self.flat.shadow is None else self.flat.shadow
        self._head_weight = self.flat.view(flat, self._head, filled=True)
        body = twin.base_model
        self._body = lambda embeds: body(inputs_embeds=embeds, use_cache=False).last_hidden_state
        if is_compiled:
            self._body = compiled(self._body)
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
                row_loss_=triton_row_loss_,
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


def _in_one_piece(gradient: torch.Tensor) -> torch.Tensor:
    """Contiguous and at an address that the kernels can read 16 bytes at a time; a copy where it is not."""
    gradient = gradient.contiguous()
    return gradient if gradient.data_ptr() % 16 == 0 else gradient.clone()


def twin_of(model, parameters: dict[str, torch.nn.Parameter]):
    """A copy of `model` that computes with `parameters`, by name, and attends causally. It copies no weight."""
    memo = {id(parameter): parameters[name] for name, parameter in model.named_parameters()}
    twin = copy.deepcopy(model, memo)
    if reason := use_causal_attention(twin):
        raise Unsuitable(reason)
    return twin


def _unsuitable(model) -> str | None:
    """What the three parts of `_FlatStep` cannot express; None where they fit."""
    head, lookup = model.get_output_embeddings(), model.get_input_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None or not isinstance(lookup, torch.nn.Embedding):
        return "the head is no plain product with the hidden states"
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        return f"{len(frozen)} weights are frozen, {frozen[0]} among them"
    dropping = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.p > 0 and module.training
    ]
    return f"dropout at {dropping[0]} would make its losses differ" if dropping else None


def compiled(function):
    """torch.compile for one static shape, whole or not at all. Compiled code is kept where it survives a reboot."""
    # Earlier engines' code would count against the limit of recompilations, and then run uncompiled.
    torch.compiler.reset()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kit" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    return torch.compile(function, fullgraph=True, dynamic=False)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
