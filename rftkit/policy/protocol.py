"""What every policy promises, wherever its model runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rftkit.data.records import Sample, SamplingConfig

Messages = list[dict[str, Any]]  # one prompt: [{"role": "user", "content": "..."}, ...]
Progress = Callable[[int], None]  # hears how many answers have just been finished


class Policy(Protocol):
    """Anything that answers prompts."""

    name: str

    def sample(
        self,
        prompts: list[Messages],
        n: int = 1,
        config: SamplingConfig | None = None,
        progress: Progress | None = None,
    ) -> list[list[Sample]]:
        """n answers to each prompt: samples[p][i], in the order of the prompts.

        config    temperature, top_p, longest answer, stop texts, seed (None: the defaults, T = 1)
        progress  called as answers are finished, with their number; the numbers add up to P * n

        An answer that never came has finish_reason "error" and says why in `errors`.
        """
        ...
