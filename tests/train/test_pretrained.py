"""Pretrained weights: from the Hugging Face cache, said so in the report, and a clear error where there are none."""

import dataclasses

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kit.errors import UsageError
from kit.train.config import TrainConfig
from kit.train.model import build_model

PRETRAINED = TrainConfig(device="cpu", weights="pretrained")


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An offline cache; a snapshot is what `huggingface_hub` would have downloaded."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path), raising=False)
    return tmp_path


def test_weights_come_from_the_cache_and_the_note_says_so(hub_cache):
    torch.manual_seed(7)
    saved = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50257))
    folder = hub_cache / "models--gpt2"
    saved.save_pretrained(folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc", encoding="utf-8")
    model, note = build_model(PRETRAINED)
    assert torch.equal(model.transformer.wte.weight, saved.transformer.wte.weight)
    assert "pretrained" in note
    assert model.training and next(model.parameters()).dtype == torch.float32


def test_without_cache_and_network_the_error_says_what_to_do(hub_cache):
    with pytest.raises(UsageError, match="pretrained weights") as caught:
        build_model(PRETRAINED)
    assert "weights=random" in caught.value.todo


def test_random_weights_are_those_of_the_seed():
    config = TrainConfig(model="tiny", device="cpu")
    first, note = build_model(config)
    again, _ = build_model(config)
    other, _ = build_model(dataclasses.replace(config, seed=7))
    assert torch.equal(first.transformer.wte.weight, again.transformer.wte.weight)
    assert not torch.equal(first.transformer.wte.weight, other.transformer.wte.weight)
    assert "random initialisation with seed 42" in note
