"""What ``train_arithmetic.py`` sampled, as rows in the form of verl's dumps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pyarrow import Table, parquet


class Recorded:
    """Puts a row for each response of the training into ``rollouts``; for a single process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rollouts: list[dict[str, Any]] = []
        self._is_scoring = False
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._is_scoring = True
        output = super()._generate_and_score_completions(inputs)
        self._is_scoring = False
        self._record([row["prompt"] for row in inputs], output)
        return output

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        self._scores = super()._calculate_rewards(*args)
        return self._scores

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_scoring:
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)
        # TRL's first pass over what was sampled, with the weights that sampled it.
        kwargs["compute_entropy"] = True
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._entropies = found[1]
        return found

    def _record(self, prompts: list[str], output: dict[str, Any]) -> None:
        mask = output["completion_mask"].bool()
        lengths = mask.sum(dim=1)
        entropies = torch.where(mask, self._entropies, 0).sum(dim=1) / lengths
        texts = self.processing_class.batch_decode(
            output["completion_ids"], skip_special_tokens=True
        )
        step = self.state.global_step + 1
        columns = (prompts, texts, self._scores.sum(dim=1).tolist(), lengths.tolist(), entropies)
        for i, (prompt, text, score, length, entropy) in enumerate(zip(*columns, strict=True)):
            a, b = prompt.rstrip("?").split("+")
            self.rollouts.append(
                {
                    "input": prompt,
                    "output": text,
                    "gts": str(int(a) + int(b)),
                    "score": score,
                    "step": step,
                    "uid": f"{step}-{i // self.num_generations}",
                    "response_length": length,
                    # Nats a token, to four places: that keeps the file small.
                    "entropy": round(float(entropy), 4),
                }
            )


def write_rollouts(rollouts: list[dict[str, Any]], folder: str, method: str) -> None:
    """``folder/arithmetic-method.parquet``."""
    path = Path(folder) / f"arithmetic-{method}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pylist(rollouts), path, compression="zstd", compression_level=19)
    print(f"rollouts: {path}, {len(rollouts):,} responses")
