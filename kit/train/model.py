"""Builds the model, its optimizer and the precision it runs in: transformers' GPT-2, torch's AdamW."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch

from kit.errors import UsageError
from kit.process import cache_folder
from kit.train.config import TrainConfig

# Causal attention that stays causal when a step is compiled or captured.
#
# transformers gives up `is_causal` while it is traced (`masking_utils._ignore_causal_mask_sdpa`)
# and hands SDPA a full mask, for which only its slower kernels exist. A function registered
# under a name of its own gets no mask at all. It refuses what plain causal attention cannot do.

NAME = "kit_causal"


def use_causal_attention(model) -> str | None:
    """Makes `model` attend through `causal_attention`. Returns why it cannot, None where it did."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if not getattr(model, "_supports_sdpa", False):
        return f"{type(model).__name__} does not attend through SDPA"
    windows = [getattr(model.config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if any(windows) and getattr(model.config, "use_sliding_window", True):
        return f"{type(model).__name__} attends within a window of {max(filter(None, windows))} tokens"
    ALL_ATTENTION_FUNCTIONS.register(NAME, causal_attention)
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        return f"{type(model).__name__} does not let its attention be replaced"
    return None


def causal_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """query: (B, H, T, D); key, value: (B, H or fewer, T, D). Returns (B, T, H, D) and no weights."""
    if attention_mask is not None or not getattr(module, "is_causal", True):
        raise ValueError(f"{type(module).__name__} needs a mask, and this attention is causal without one")
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


@contextlib.contextmanager
def fast_kernels(dtype: torch.dtype, seq_len: int):
    """Prefers cuDNN's attention where it is the fastest; float32 never reaches it, since it answered NaN there.

    Measured on an H100 at 64 × 12 × 1024 × 64, forward and backward: cuDNN 0.30 and 1.10 ms, flash 0.47 and 1.45.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    is_for_cudnn = dtype == torch.bfloat16 and seq_len >= 256
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *others] if is_for_cudnn else others, set_priority=True):
        yield


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
        note = "pretrained weights of gpt2 from the Hugging Face hub"
        try:
            model = GPT2LMHeadModel.from_pretrained("gpt2", **dropout).float()
        except OSError as error:
            raise UsageError(
                f"the pretrained weights of gpt2 could not be loaded: {str(error).splitlines()[0]}",
                expected="the Hugging Face cache or a reachable hub",
                todo="set weights=random, or download gpt2 once where there is a network",
            ) from error
    else:
        note = f"random initialisation with seed {config.seed}; no pretrained weights"
        torch.manual_seed(config.seed)
        model = GPT2LMHeadModel(GPT2Config(**dataclasses.asdict(config.shape), use_cache=False, **dropout))
    # The name of GPT-2's own loss; unset, transformers warns and then uses it all the same.
    model.loss_type = "ForCausalLM"
    return model.train(), note


def build_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW in torch's fused kernels on a GPU, as the Trainer has it; a kernel for each operation on the CPU."""
    is_fused = config.device == "cuda"
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=is_fused)


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


class Unsuitable(Exception):
    """This model cannot be computed by this engine; the text says why."""


def twin_of(model, parameters: dict[str, torch.nn.Parameter]):
    """A copy of `model` that computes with `parameters`, by name, and attends causally. It copies no weight."""
    memo = {id(parameter): parameters[name] for name, parameter in model.named_parameters()}
    twin = copy.deepcopy(model, memo)
    if reason := use_causal_attention(twin):
        raise Unsuitable(reason)
    return twin


def compiled(function):
    """torch.compile for one static shape, whole or not at all. Compiled code is kept where it survives a reboot."""
    # Earlier engines' code would count against the limit of recompilations, and then run uncompiled.
    torch.compiler.reset()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder("inductor")))
    return torch.compile(function, fullgraph=True, dynamic=False)


def compute_dtype(config: TrainConfig) -> torch.dtype:
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
