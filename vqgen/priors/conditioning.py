"""Conditions as tokens: what stands in front of the image tokens of a transformer prior.

Each module has `length` (condition tokens), `can_drop` (there is a null condition),
`check(condition)`, `forward(condition)` -> [batch, length, width] and `visible(condition)`, the
mask of its real tokens or None.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgen.contracts import Condition
from vqgen.nn.linear import Linear


def condition_tokens(
    width: int, *, num_classes: int = 0, text_length: int = 0, text_dim: int = 0
) -> "ClassToken | TextTokens | StartToken":
    """The module for these sizes: text if there is a text_length, classes if there are any, else a
    start token."""
    if (num_classes and text_length) or bool(text_length) != bool(text_dim):
        raise ValueError(
            "wanted classes, or texts with their length and width, or neither, got "
            f"num_classes={num_classes}, text_length={text_length}, text_dim={text_dim}; "
            "set the ones you do not mean to 0"
        )
    if text_length:
        return TextTokens(width, text_length=text_length, text_dim=text_dim)
    return ClassToken(width, num_classes=num_classes) if num_classes else StartToken(width)


def causal_mask(visible: Tensor, length: int) -> Tensor:
    """visible Bool [batch, T] of the condition -> Bool [batch, 1, length, length], True where a row
    may look.

    Everyone looks back, at real tokens only; a hidden token still sees itself (a row of nothing has
    no softmax)."""
    columns = F.pad(visible, (0, length - visible.shape[1]), value=True)
    past = torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=visible.device)
    return past & columns[:, None, None] | itself


class ClassToken(nn.Module):
    """One token per class and one more, the last row, for "no class"."""

    length, can_drop = 1, True

    def __init__(self, width: int, *, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes + 1, width)

    def check(self, condition: Condition) -> None:
        """Raise a ValueError unless there is a label in range for every image."""
        labels, top = condition.labels, self.num_classes - 1
        if labels is None or labels.shape != (condition.batch,):
            got = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise ValueError(
                f"wanted {condition.batch} class labels, got {got}; give classes= 0 to {top}"
            )
        if not ((labels >= 0) & (labels <= top)).all():
            raise ValueError(
                f"wanted class labels from 0 to {top}, got {labels.tolist()}; change classes="
            )

    def forward(self, condition: Condition) -> Tensor:
        """-> [batch, 1, width]."""
        labels = condition.labels
        assert labels is not None, "a class model needs Condition.of_labels"
        if condition.dropped is not None:
            labels = labels.masked_fill(condition.dropped, self.num_classes)
        return self.embedding(labels)[:, None]

    def visible(self, condition: Condition) -> None:
        """A class is always visible."""


class TextTokens(nn.Module):
    """Text embeddings through two linear layers with a GELU between; a fixed caption stands in for
    "no text"."""

    can_drop = True
    null_caption: Tensor

    def __init__(self, width: int, *, text_length: int, text_dim: int) -> None:
        super().__init__()
        self.length, self.text_dim = text_length, text_dim
        self.project_in = Linear(text_dim, width, bias=False)
        self.project_out = Linear(width, width, bias=False)
        # Random and never trained, as published: the layers behind it learn what it means.
        self.register_buffer("null_caption", torch.randn(text_length, text_dim) * text_dim**-0.5)

    def check(self, condition: Condition) -> None:
        """Raise a ValueError unless there are text embeddings of the size this model was built
        for."""
        text, want = condition.text, (condition.batch, self.length, self.text_dim)
        if text is None or text.shape != want:
            got = "none" if text is None else f"shape {tuple(text.shape)}"
            raise ValueError(
                f"wanted text embeddings {list(want)}, got {got}; pad the text on the left to "
                f"{self.length} tokens and mark the padding False in the mask"
            )

    def forward(self, condition: Condition) -> Tensor:
        """-> [batch, length, width]."""
        assert condition.text is not None, "a text model needs Condition.of_text"
        text = condition.text.to(self.null_caption.dtype)  # an encoder may be in float32, this not
        if condition.dropped is not None:
            text = torch.where(condition.dropped[:, None, None], self.null_caption, text)
        return self.project_out(F.gelu(self.project_in(text), approximate="tanh"))

    def visible(self, condition: Condition) -> Tensor:
        """-> Bool [batch, length], True at real tokens; the null caption keeps the mask of the text
        it replaces."""
        if condition.mask is not None:
            return condition.mask.bool()
        return torch.ones(condition.batch, self.length, dtype=torch.bool, device=condition.device)


class StartToken(nn.Module):
    """No condition: one learned token to start from."""

    length, can_drop = 1, False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1, width)

    def check(self, condition: Condition) -> None:
        """Raise a ValueError if a class or a text was asked for."""
        if condition.labels is not None or condition.text is not None:
            raise ValueError(
                "wanted no condition, since this prior is unconditional (num_classes=0), "
                "got labels or text; leave out classes="
            )

    def forward(self, condition: Condition) -> Tensor:
        """-> [batch, 1, width]."""
        return self.embedding.weight.expand(condition.batch, 1, -1)

    def visible(self, condition: Condition) -> None:
        """The start token is always visible."""
