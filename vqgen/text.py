"""Captions to text conditions: a frozen T5 encoder and a cache of what it said.

The published text-to-image models read the last hidden state of google/flan-t5-xl, 120 tokens,
padded on the left and zero there (Sun et al. 2024).
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqgen import checkpoint
from vqgen.contracts import Condition, Prior

PUBLISHED = "google/flan-t5-xl"


class TextEncoder:
    """Captions -> Condition, for priors with a text condition.

    tokenize  captions -> (ids Long [batch, length], mask [batch, length], 1 = a real token),
              padded on the right
    network   ids, mask -> an object with `last_hidden_state` [batch, length, dim]
    length    tokens per caption; longer ones are cut, and the first such is warned of
    count     caption -> how many tokens it has, uncut; None: nobody is warned
    cache     folder where embeddings are kept, one file per caption; None: nowhere
    mark      names tokenizer and network in the cache: other weights, other files
    """

    def __init__(
        self,
        *,
        tokenize: Any,
        network: nn.Module,
        length: int = 120,
        cache: Path | None = None,
        mark: str = "",
        count: Callable[[str], int] | None = None,
    ) -> None:
        self.tokenize, self.network = tokenize, network.eval().requires_grad_(False)
        self.length, self.cache, self.mark = length, cache, mark
        self.count, self.warned = count, False

    def __call__(self, captions: Sequence[str]) -> Condition:
        """Embed the captions. Row i depends on caption i alone, whatever the others are: each goes
        through the network by itself."""
        self._warn_of_cuts(captions)
        rows = [self._cached(caption) for caption in captions]
        text, mask = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return Condition.of_text(text, mask)

    def _warn_of_cuts(self, captions: Sequence[str]) -> None:
        for caption in captions:
            if self.count is None or self.warned:
                return
            tokens = self.count(caption)
            if tokens > self.length:
                self.warned = True
                warnings.warn(
                    f"the model reads the first {self.length} tokens of a caption; of {tokens} the "
                    f"rest is cut: {caption:.60}...; say the most important first, or less",
                    stacklevel=3,
                )

    def _cached(self, caption: str) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            return self._embed(caption)
        key = hashlib.sha256(f"{self.mark}\n{self.length}\n{caption}".encode()).hexdigest()[:32]
        path = self.cache / f"{key}.safetensors"
        try:
            saved = load_file(path)
            return saved["text"], saved["mask"]
        except (FileNotFoundError, SafetensorError, KeyError):  # none yet, or one cut short
            text, mask = self._embed(caption)
        with checkpoint.atomic(path) as temporary:
            save_file({"text": text, "mask": mask}, temporary, metadata={"caption": caption})
        return text, mask

    @torch.inference_mode()
    def _embed(self, caption: str) -> tuple[Tensor, Tensor]:
        """-> (text [length, dim] float32 on the CPU, zero where mask Bool [length] is False)."""
        device = next(self.network.parameters()).device
        ids, mask = (part.to(device) for part in self.tokenize([caption], self.length))
        hidden = self.network(input_ids=ids, attention_mask=mask).last_hidden_state[0]
        mask, count = mask[0].bool(), int(mask.sum())
        # real tokens last, in their order
        text = hidden.float().masked_fill(~mask[:, None], 0).roll(self.length - count, dims=0)
        return text.cpu(), mask.roll(self.length - count, dims=0).cpu()


def asked(settings: dict[str, Any], prior: Prior) -> list[str]:
    """The captions of sample.py's text=, one or a list; [] for a prior that takes none.

    Raises ValueError where the prior wants a text and none was typed, or the other way round."""
    given, example = settings["text"], """'text="a cat on a chair"'"""
    if prior.text_size is None:
        if given is not None:
            cure = "classes=[NAME]" if prior.num_classes else "neither text= nor classes="
            raise ValueError(f"text= is for a text-to-image model, this one has none; type {cure}")
        return []
    if settings["classes"] != "all":
        raise ValueError(f"this model has no classes, it takes captions; type {example}")
    captions = [str(one) for one in (given if isinstance(given, list) else [given])]
    if not captions or given is None or not all(caption.strip() for caption in captions):
        raise ValueError(f"this model paints captions and got none; type {example}")
    if settings["text_encoder"] is None:
        raise ValueError(
            f"captions need the text encoder that this model was trained with; type text_encoder="
            f"{PUBLISHED} (a name on the Hugging Face hub), or text_encoder=FOLDER"
        )
    return captions


def embed(
    captions: Sequence[str], settings: dict[str, Any], prior: Prior, device: torch.device
) -> Condition:
    """The condition of settings["n"] images per caption, side by side.

    Raises ValueError if the encoder is not there, or is another one than the prior's."""
    assert prior.text_size is not None
    length, width = prior.text_size
    cache = settings["text_cache"]
    if cache is not None and Path(cache).exists() and not Path(cache).is_dir():
        raise ValueError(f"wanted text_cache=FOLDER, but {cache} is a file; type another folder")
    encode = t5(
        str(settings["text_encoder"]),
        length=length,
        cache=None if cache is None else Path(cache),
        device=device,
    )
    made = encode(captions)
    assert made.text is not None
    if made.text.shape[-1] != width:
        raise ValueError(
            f"wanted a text encoder of width {width}, text_encoder={settings['text_encoder']} has "
            f"{made.text.shape[-1]}; type text_encoder={PUBLISHED}, or the one of this model"
        )
    return made.map(lambda part: part.repeat_interleave(settings["n"], dim=0))


def t5(
    path: str = PUBLISHED,
    *,
    length: int = 120,
    cache: Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """A T5 encoder out of a local folder or the Hugging Face hub; what is there already is used
    without asking the hub.

    Raises ValueError if transformers, the weights or the tokenizer are not there."""
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("captions need the package transformers; type: pip install 'vqgen[text]'")
    folder = Path(path)
    if folder.is_absolute() and not folder.is_dir():  # no name on the hub either
        raise ValueError(
            f"wanted text_encoder=FOLDER with T5 weights and tokenizer, but {path} is no folder; "
            f"type another, or text_encoder={PUBLISHED} for the hub's"
        )
    try:
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise ValueError("no config.json in it")
        tokenizer, network = _load(path, dtype, on_hub=not folder.is_dir())
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        hub = "" if path == PUBLISHED else f"text_encoder={PUBLISHED}, or "
        raise ValueError(
            f"wanted T5 weights and tokenizer as .safetensors in {path}, a folder or a name on the "
            f"hub, got: {first}; type {hub}text_encoder=FOLDER of a copy"
        ) from error

    def tokenize(captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        made = tokenizer(
            list(captions),
            max_length=length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        return made["input_ids"], made["attention_mask"]

    def count(caption: str) -> int:
        return len(tokenizer(caption, verbose=False)["input_ids"])

    moved: Any = network
    moved.to(device)
    mark = checkpoint.fingerprint(network.state_dict(), {"config": network.config.to_dict()})
    return TextEncoder(
        tokenize=tokenize, network=moved, length=length, cache=cache, mark=mark, count=count
    )


def _load(path: str, dtype: torch.dtype, *, on_hub: bool) -> tuple[Any, Any]:
    """(tokenizer, network) of a folder or of the hub's copy on this disk, else out of the hub.

    Raises ValueError or OSError for what is not there or does not belong together."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from transformers.utils import logging

    showed_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return _read(path, dtype, local_files_only=True)
    except (OSError, ValueError):
        if not on_hub:
            raise
    finally:
        if showed_bars:
            logging.enable_progress_bar()
    try:  # once: the readers would try again for more than a minute
        get_hf_file_metadata(hf_hub_url(path, "config.json"), timeout=10)
    except Exception as error:  # the hub and the network raise whatever they like
        said = " ".join(str(error).split())
        raise OSError(f"no copy on this disk, and the hub gave none ({said:.160})") from error
    return _read(path, dtype)  # a long download: with bars


def _read(path: str, dtype: torch.dtype, **more: Any) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer: Any = AutoTokenizer.from_pretrained(path, **more)
    # without its files transformers makes one up, which knows a space and special tokens alone
    if len(tokenizer) - len(tokenizer.all_special_tokens) < 2:
        raise ValueError("no tokenizer.json or spiece.model in it, so that it knows no words")
    network = T5EncoderModel.from_pretrained(path, dtype=dtype, use_safetensors=True, **more)
    if len(tokenizer) > network.config.vocab_size:
        raise ValueError(
            f"a tokenizer of {len(tokenizer)} tokens for weights of {network.config.vocab_size}"
        )
    return tokenizer, network
