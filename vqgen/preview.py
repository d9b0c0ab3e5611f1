"""The sample sheet that stage 2 draws at each validation."""

from typing import Any

import numpy as np

from vqgen import pictures
from vqgen.arguments import checked_knobs
from vqgen.contracts import Prior, Tokenizer
from vqgen.pipeline import Pipeline
from vqgen.sampling import guidance


class Preview:
    """Called with an averaged prior -> a sheet, uint8 [height, width, 3]: `per_class` images of up
    to 10 classes, one row each; their seeds are 0, 1, 2, ...

    settings  per_class, guidance, and any knobs of the prior
    prior     the one that will be trained

    Raises ValueError for settings that do not suit the prior: now, and not at the first validation
    of a long training."""

    def __init__(
        self,
        settings: dict[str, Any],
        tokenizer: Tokenizer,
        prior: Prior,
        class_names: tuple[str, ...],
    ) -> None:
        self.settings, self.tokenizer, self.class_names = settings, tokenizer, class_names
        self.knobs = {k: v for k, v in settings.items() if k not in ("per_class", "guidance")}
        if not isinstance(settings["per_class"], int) or settings["per_class"] < 1:
            raise ValueError(
                "wanted preview.per_class as a whole number of at least 1, got "
                f"{settings['per_class']}; type preview.per_class=8"
            )
        guidance.parse(settings["guidance"])
        checked_knobs(prior, self.knobs)

    def __call__(self, prior: Prior) -> np.ndarray:
        """The sheet."""
        pipeline = Pipeline(self.tokenizer, prior, facts={"class_names": self.class_names})
        count, rows = self.settings["per_class"], min(10, len(self.class_names))
        labels = [label for label in range(rows) for _ in range(count)] or None
        images = pipeline.sample(
            labels,
            n=None if labels else 4 * count,
            guidance=self.settings["guidance"],
            **self.knobs,
        )
        return pictures.sheet(images, labels, self.class_names, columns=count)
