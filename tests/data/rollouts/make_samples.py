"""Writes the samples beside this file with the code that writes such files in training.

Each function needs the package that it names (see README.md); what is not installed is skipped.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from unittest.mock import MagicMock

HERE = Path(__file__).parent
PROMPTS = ["7+5?", "12+30?", "91+41?"]
ANSWERS = ["12", "42", "132"]


def import_without_dependencies(name: str):
    """The module, with stand-ins for what it imports beside the code that writes files."""
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            sys.modules[error.name] = MagicMock()


def draws(seed: int, size: int) -> list[tuple[str, str, str, float]]:
    """(prompt, answer, response, reward), `size` of each prompt, shuffled."""
    rng = random.Random(seed)
    rows = []
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        for draw in range(size):
            right = draw < (i + seed) % (size + 1)
            response = f'Let me "add":\n{prompt[:-1]} = ' + (answer if right else f"{draw}é")
            rows.append((prompt, answer, response, float(right)))
    rng.shuffle(rows)
    return rows


def verl() -> None:
    """Dumps of both trainers of verl 0.9.1: without uid, and with that of agent loops."""
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    folder = HERE / "verl"
    for step in (9, 10):
        rows = draws(step, 4)
        extra = {"acc": [reward > 0 for *_, reward in rows]}
        columns = [list(column) for column in zip(*rows, strict=True)]
        prompts, answers, responses, rewards = columns
        RayPPOTrainer._write_generations(
            prompts, responses, answers, rewards, extra, str(folder), step
        )

    trainer = import_without_dependencies("verl.trainer.ppo.v1.trainer_base").PPOTrainer
    rows = draws(1, 4)
    rows.sort(key=lambda row: PROMPTS.index(row[0]))
    inputs, outputs, answers, scores, uids = [], [], [], [], []
    for number, (prompt, answer, response, reward) in enumerate(rows):
        uid = f"{number // 4:08d}-aaaa-4bbb-8ccc-0123456789ab_{number % 4}"
        # The last session of each prompt takes two outputs, rewarded as the second of them.
        for index in range(2 if number % 4 == 3 else 1):
            inputs.append(prompt)
            outputs.append(response if index == 0 else f"{response} (again)")
            answers.append(answer)
            scores.append(reward)
            uids.append(f"{uid}_{index}")
    trainer._write_generations(
        inputs, outputs, answers, scores, {"uid": uids}, str(HERE / "verl-sessions"), 3
    )


def tiny_model(folder: Path):
    """A model with a vocabulary of characters."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = {
        c: i for i, c in enumerate(["<pad>", "<eos>", "<unk>", *"0123456789+?=;: \nausermitn"])
    }
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config), fast


def trl() -> None:
    """TRL 1.16.0 GRPOTrainer, two steps: prompts as text with two rewards, and as messages."""
    import shutil
    import tempfile

    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def even(completions, **_):
        """0 or 1, and none at all for one in seven."""
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [None if len(t) % 7 == 3 else float(sum(map(ord, t)) % 2) for t in texts]

    def brevity(completions, **_):
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [1.0 - len(t) / 16 for t in texts]

    for name, rewards in (("trl", [even, brevity]), ("trl-messages", [even])):
        texts = name == "trl"
        prompts = [p if texts else [{"role": "user", "content": p}] for p in PROMPTS]
        with tempfile.TemporaryDirectory() as folder:
            model, tokenizer = tiny_model(Path(folder))
            trainer = GRPOTrainer(
                model=model,
                processing_class=tokenizer,
                reward_funcs=rewards,
                train_dataset=Dataset.from_dict({"prompt": prompts * 4}),
                args=GRPOConfig(
                    output_dir=folder,
                    per_device_train_batch_size=12,
                    num_generations=4,
                    max_completion_length=12,
                    max_steps=2,
                    logging_steps=1,
                    log_completions=True,
                    report_to="none",
                    use_cpu=True,
                    bf16=False,
                    seed=1,
                    temperature=1.0,
                ),
            )
            trainer.train()
            target = HERE / name / "completions"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(Path(folder) / "completions", target)


def nemo_rl(source: str) -> None:
    """NeMo-RL's own logger and batches, from a checkout; its loggers elsewhere are not needed."""
    sys.path.insert(0, source)
    import torch
    from nemo_rl.data.llm_message_utils import batched_message_log_to_flat_message

    sys.modules["torch.utils.tensorboard"] = MagicMock()
    Logger = import_without_dependencies("nemo_rl.utils.logger").Logger
    logger = Logger.__new__(Logger)
    logger.gpu_monitor = None
    logger.base_log_dir = str(HERE / "nemo_rl")
    for step in (1, 2):
        rows = draws(step, 4)
        rows.sort(key=lambda row: PROMPTS.index(row[0]))
        log, rewards = [], []
        for prompt, _, response, reward in rows:
            prompt_ids = torch.tensor([1000, *map(ord, prompt)])
            response_ids = torch.tensor([ord(c) % 200 for c in response])
            log.append(
                [
                    {
                        "role": "user",
                        "content": prompt,
                        "token_ids": prompt_ids,
                        "token_loss_mask": torch.zeros_like(prompt_ids),
                        "generation_logprobs": torch.zeros(len(prompt_ids)),
                    },
                    {
                        "role": "assistant",
                        "content": response,
                        "token_ids": response_ids,
                        "token_loss_mask": torch.ones_like(response_ids),
                        "generation_logprobs": -torch.rand(len(response_ids)).round(decimals=3),
                    },
                ]
            )
            rewards.append(reward)
        flat, lengths = batched_message_log_to_flat_message(log, {"token_ids": 0})
        count = len(rows)
        sample_mask = torch.ones(count)
        sample_mask[0] = 0  # as overlong filtering does
        # As grpo.py of that commit: lines 3630 to 3654.
        logger.log_batched_dict_as_jsonl(
            {
                "content": flat["content"],
                "rewards": rewards,
                "input_lengths": lengths.tolist(),
                "token_ids": flat["token_ids"].tolist(),
                "token_loss_mask": flat["token_loss_mask"].tolist(),
                "sample_loss_mask": sample_mask.tolist(),
                "advantages": torch.zeros(flat["token_ids"].shape).tolist(),
                "generation_logprobs": flat["generation_logprobs"].tolist(),
                "prev_logprobs": flat["generation_logprobs"].tolist(),
            },
            f"train_data_step{step}.jsonl",
        )
    logger.log_batched_dict_as_jsonl(
        {"content": [[{"role": "user", "content": "7+5?"}]], "rewards": [1.0]},
        "val_data_step2.jsonl",
    )


def nodes(module, prompt: str, response: str, **more):
    """The messages of a single turn with their tokens."""
    ids = [ord(c) % 200 for c in response]
    return [
        module.MessageNode(
            message={"role": "user", "content": prompt},
            token_ids=list(map(ord, prompt)),
            mask=[False] * len(prompt),
            **more,
        ),
        module.MessageNode(
            parent=0,
            message={"role": "assistant", "content": response},
            sampled=True,
            token_ids=[7, *ids],
            mask=[False] + [True] * len(ids),
            logprobs=[-0.25] * len(ids),
            **more,
        ),
    ]


def prime_rl() -> None:
    """Episodes of verifiers 0.3.1, written as prime-rl's FileMonitor does."""
    import orjson
    import verifiers.v1 as vf
    from verifiers.v1 import graph
    from verifiers.v1.configs.agent import WireAgentConfig
    from verifiers.v1.episode import EnvInfo, GroupInfo, PolicySpan, TrainRunInfo, TrainWorkInfo
    from verifiers.v1.trace import AgentInfo, Reward, TraceTask, VersionInfo

    build = VersionInfo(version="0.3.1")
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    for step in (1, 2):
        records = []
        for number, (prompt, answer, response, reward) in enumerate(draws(step, 4)):
            task = TraceTask(
                type="Addition",
                key=f"addition-{PROMPTS.index(prompt)}",
                data=vf.WireTaskData(idx=PROMPTS.index(prompt), prompt=prompt, answer=answer),
            )
            traces = []
            for name, trainable in (("solver", True), ("judge", False)):
                trace = vf.Trace(
                    id=f"{name}-{step}-{number:02d}",
                    verifiers=build,
                    task=task,
                    ok=number != 5,
                    agent=AgentInfo(config=WireAgentConfig(), name=name, trainable=trainable),
                    nodes=nodes(graph, prompt, response, timestamp=0.0),
                    is_completed=True,
                    rewards={
                        "correct": Reward(score=reward, weight=1.0),
                        "format": Reward(score=1.0, weight=0.0),
                        "late": None,
                    },
                )
                trace.timing.start = 0.0
                traces.append(trace)
            episode = vf.Episode(
                id=f"episode-{step}-{number:02d}",
                env=EnvInfo(id="addition"),
                task=task,
                group=GroupInfo(id=f"group-{step}-{PROMPTS.index(prompt)}"),
                ok=number != 5,
                traces=traces,
                run=TrainRunInfo(
                    id="run", work=TrainWorkInfo(step=step, policy=PolicySpan(start=0, end=step))
                ),
            )
            records.append(episode.to_record())
        for subset, chosen in (("all", records), ("effective", records[:4])):
            path = HERE / f"prime_rl/rollouts/step_{step}/train/{subset}/traces.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(orjson.dumps(r, default=str, option=options) for r in chosen))


def prime_rl_traces(source: str) -> None:
    """Single traces: verifiers at fab50d51 from a checkout, and the fields of prime-rl 1caebf8a1."""
    sys.path.insert(0, source)
    import verifiers.v1 as vf
    from verifiers.v1 import graph

    records = []
    for number, (prompt, _, response, reward) in enumerate(draws(2, 4)):
        trace = vf.Trace(
            id=f"trace-{number:02d}",
            task=vf.Task(idx=PROMPTS.index(prompt), prompt=prompt),
            nodes=nodes(graph, prompt, response),
            rewards={"correct": reward, "format": 0.25},
            is_completed=True,
            errors=[{"type": "E", "message": "m"}] if number == 5 else [],
        )
        trace.timing.start = 0.0
        # src/prime_rl/orchestrator/types.py, Rollout.to_record.
        records.append(
            trace.to_record()
            | {
                "kind": "train",
                "env_name": "addition",
                "group_id": f"00000000-0000-4000-8000-00000000000{PROMPTS.index(prompt)}",
                "policy_version": 3,
                "eval_step": None,
            }
        )
    path = HERE / "prime_rl-traces/rollouts/step_4/train/all/traces.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def verifiers_v0(source: str) -> None:
    """Rollouts of verifiers 0.1.14 from a checkout, written as prime-rl b194a6ed2 does."""
    sys.path.insert(0, source)
    from verifiers.types import RolloutTiming, State
    from verifiers.utils.save_utils import make_serializable, state_to_output

    path = HERE / "verifiers/step_7/train_rollouts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as f:
        for number, (prompt, answer, response, reward) in enumerate(draws(3, 4)):
            state = State(
                example_id=PROMPTS.index(prompt),
                prompt=[{"role": "user", "content": prompt}],
                completion=[{"role": "assistant", "content": response}],
                answer=answer,
                reward=reward,
                timing=RolloutTiming(),
                is_completed=True,
                metrics={"correct": reward},
                trajectory=[],
                usage={"input_tokens": len(prompt), "output_tokens": len(response)},
            )
            if number == 5:
                state["error"] = RuntimeError("the tool failed")
            output = state_to_output(state)
            json.dump(output, f, default=make_serializable)
            f.write("\n")


def parquet() -> None:
    """The same rows in four compressions, some values absent, in row groups of five."""
    import polars as pl

    rows = draws(2, 4)
    frame = pl.DataFrame(
        {
            "problem": [prompt for prompt, *_ in rows],
            "reward": [None if i == 5 else reward for i, (*_, reward) in enumerate(rows)],
            "global_step": [i // 6 for i in range(len(rows))],
            "response_ids": [list(map(ord, response)) for _, _, response, _ in rows],
        }
    )
    (HERE / "parquet").mkdir(exist_ok=True)
    for codec in ("zstd", "gzip", "lz4", "uncompressed"):
        frame.write_parquet(HERE / f"parquet/{codec}.parquet", compression=codec, row_group_size=5)


if __name__ == "__main__":
    name, *rest = sys.argv[1:]
    samples = (verl, trl, nemo_rl, prime_rl, prime_rl_traces, verifiers_v0, parquet)
    {sample.__name__: sample for sample in samples}[name](*rest)
