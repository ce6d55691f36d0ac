"""Builds the model, its optimizer and the precision it runs in: transformers' GPT-2, torch's AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from kit.errors import UsageError
from kit.train.config import TrainConfig


def build_model(config: TrainConfig) -> tuple[torch.nn.Module, str]:
    """GPT-2 in float32 on the CPU, in training mode, and a sentence on where its weights come from.

    Dropout is 0, so that a run repeats and its losses can be compared with another device's.
    Raises UsageError where pretrained weights are neither cached nor reachable.
    """
    # The model's own file, not the auto classes: importing those costs seconds.
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    if config.weights == "pretrained":
        try:
            model = GPT2LMHeadModel.from_pretrained("gpt2", **dropout)
        except OSError as error:
            raise UsageError(
                f"the pretrained weights of gpt2 could not be loaded: {str(error).splitlines()[0]}",
                expected="the Hugging Face cache or a reachable hub",
                todo="set weights=random, or download gpt2 once where there is a network",
            ) from error
        return _ready(model.float()), "pretrained weights of gpt2 from the Hugging Face hub"
    torch.manual_seed(config.seed)
    shape = config.shape
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            vocab_size=shape.vocab_size,
            n_positions=shape.n_positions,
            use_cache=False,
            **dropout,
        )
    )
    return _ready(model), f"random initialisation with seed {config.seed}; no pretrained weights"


def _ready(model: torch.nn.Module) -> torch.nn.Module:
    # The name of GPT-2's own loss; unset, transformers warns and then uses it all the same.
    model.loss_type = "ForCausalLM"
    return model.train()


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


@contextlib.contextmanager
def precision(config: TrainConfig) -> Iterator[None]:
    """Sets how float32 matrix products are rounded for the code inside, and puts back what was there.

    Autocast is no part of it: it keeps the casts of the weights until the outermost `autocast`
    ends, so one around several steps would train all of them with the weights of the first.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if config.dtype == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(config: TrainConfig) -> contextlib.AbstractContextManager[Any]:
    """Around one forward pass, never around several steps (see `precision`)."""
    if config.dtype != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(config.device, dtype=torch.bfloat16)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or all of one of which each rank holds a part (FSDP2's DTensor). Every rank has to call it."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor
