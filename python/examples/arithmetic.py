"""The task of ``train_arithmetic.py``: addition, written out digit by digit.

``47+85?`` is answered by ``7+5=12;4+8+1=13;132.``: the units with their carry, the tens, the sum.
The reward is 1 if the sum is right and the answer ends there, else 0.
"""

from __future__ import annotations

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "0123456789+=;?"
END = "."
LONGEST_ANSWER = 24


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token per character; the end of an answer is ``.``, padding is ``_``."""
    vocab = {token: i for i, token in enumerate(["_", END, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="_"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="_", eos_token=END, padding_side="left"
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama of 0.2 million parameters with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def question(a: int, b: int) -> str:
    return f"{a:02}+{b:02}?"


def answer(a: int, b: int) -> str:
    """The worked answer that the warm-up shows."""
    units, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tens = a // 10 + b // 10 + carry
    carried = f"+{carry}" if carry else ""
    return f"{a % 10}+{b % 10}={units};{a // 10}+{b // 10}{carried}={tens};{a + b}{END}"


def with_slips(text: str, numbers: random.Random, share: float = 0.1) -> str:
    """Some digits replaced by random ones."""
    return "".join(
        numbers.choice("0123456789") if c.isdigit() and numbers.random() < share else c
        for c in text
    )


def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """1 where the last part of the answer is the sum, else 0."""
    rewards = []
    for prompt, completion in zip(prompts, completions, strict=True):
        a, b = prompt.rstrip("?").split("+")
        said = completion.rstrip(END).rsplit(";", 1)[-1]
        rewards.append(float(said == str(int(a) + int(b))))
    return rewards


def make_questions(count: int, seed: int) -> list[str]:
    numbers = random.Random(seed)
    return [question(numbers.randrange(100), numbers.randrange(100)) for _ in range(count)]


def warm_up(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    target: float,
    seed: int,
    max_steps: int = 1000,
    batch_size: int = 128,
) -> tuple[int, float]:
    """Supervised steps on worked answers, so that some answers are right before training.

    Stops as soon as the cross-entropy of a batch is below ``target``, in nats a token.

    Returns
    -------
    The number of steps and the last cross-entropy.
    """
    numbers = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=20)
    for step in range(1, max_steps + 1):
        pairs = [(numbers.randrange(100), numbers.randrange(100)) for _ in range(batch_size)]
        texts = [question(a, b) + with_slips(answer(a, b), numbers) for a, b in pairs]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        ids = batch["input_ids"].to(model.device)
        labels = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
        labels[:, : len(question(0, 0))] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if loss.item() < target:
            break
    return step, loss.item()
