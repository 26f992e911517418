"""A model, a tokenizer and trainers that are small enough for tests, made without any download."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from qae.trl import QAEConfig, QAETrainer

LETTERS = "abcdefghijkl"
GROUP = 4


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(["_", ".", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="_"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="_", eos_token=".", padding_side="left"
    )


def make_model(kind: str = "llama") -> torch.nn.Module:
    torch.manual_seed(11)
    vocab = 2 + len(LETTERS)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=vocab,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=1,
            eos_token_id=1,
            initializer_range=0.3,
        )
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def binary_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """1 for about a third of the completions: groups are mixed, the quantile is 0 or 1."""
    return [float(sum(map(ord, text)) % 3 == 0) for text in completions]


def prompts(count: int) -> list[str]:
    """All different, of lengths 1 to 3."""
    return [LETTERS[i % 12] + LETTERS[i // 12] * (i % 3) for i in range(count)]


def arguments(**overrides: Any) -> dict[str, Any]:
    """Two micro-batches of eight rows, one optimizer step, plain gradient descent."""
    defaults: dict[str, Any] = {
        "output_dir": "unused",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "num_generations": GROUP,
        "max_completion_length": 6,
        "max_steps": 1,
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "seed": 5,
    }
    return defaults | overrides


def make_trainer(
    output_dir: Path,
    cls: type = QAETrainer,
    config: type = QAEConfig,
    model: torch.nn.Module | None = None,
    reward_funcs: Any = binary_reward,
    **overrides: Any,
) -> Any:
    # TRL changes the model that it is given.
    model = make_model() if model is None else copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = cls(
            model=model,
            reward_funcs=reward_funcs,
            args=config(**arguments(output_dir=str(output_dir), **overrides)),
            train_dataset=Dataset.from_dict({"prompt": prompts(24)}),
            processing_class=make_tokenizer(),
        )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer


def generate(trainer: Any, count: int = 2) -> dict[str, Any]:
    """One scored micro-batch of ``count`` groups, before TRL shuffles it."""
    rows = [{"prompt": prompt} for prompt in prompts(count) for _ in range(GROUP)]
    return trainer._generate_and_score_completions(rows)


def gradients(trainer: Any) -> torch.Tensor:
    found = [p.grad for p in trainer.model.parameters()]
    assert all(grad is not None for grad in found)
    return torch.cat([grad.flatten() for grad in found])


def loss_and_gradient(trainer: Any, method: Any, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """Of ``method(trainer.model, inputs)``."""
    trainer.model.zero_grad()
    loss = method(trainer.model, inputs)
    loss.backward()
    return loss.detach(), gradients(trainer)


def parameters(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def off_policy(trainer: Any, inputs: dict[str, Any], noise: float = 0.2) -> dict[str, Any]:
    """The rollouts of an older policy, and of a reference where there is one: some are clipped."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = inputs["completion_ids"].size(1)
    with torch.no_grad():
        logps, *_ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, width)
    torch.manual_seed(3)
    inputs["old_per_token_logps"] = logps + noise * torch.randn_like(logps)
    if trainer.beta != 0.0:
        inputs["ref_per_token_logps"] = logps + noise * torch.randn_like(logps)
    # Advantages of both signs, and none where the mean baseline happens to be reached.
    inputs["advantages"] = torch.randn_like(inputs["advantages"])
    inputs["advantages"][1] = 0.0
    return inputs
