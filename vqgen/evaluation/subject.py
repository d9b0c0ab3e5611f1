"""What is evaluated and against what: model, data, given samples, reference; all of it checked."""

from pathlib import Path
from typing import Any

import torch
import yaml

from vqgen import arguments, build, checkpoint, pipeline
from vqgen.contracts import Prior
from vqgen.data.images import ImageData
from vqgen.evaluation import generator, quality, sets
from vqgen.evaluation.protocol import Protocol
from vqgen.evaluation.sets import Images


class Subject:
    """One model, or a file of samples, and everything that a protocol compares it with.

    model    a run or export folder; None if only `samples` are given
    samples  an npz or a folder of pictures to evaluate instead of sampling
    data     the node of its data; None: what the run was trained on. Without a size (None) it is
             read at the model's, and another size than that is refused
    Raises ValueError for everything that does not fit, before anything is sampled."""

    def __init__(
        self,
        protocol: Protocol,
        *,
        model: Path | None,
        samples: Path | None,
        device: str,
        data: dict[str, Any] | None = None,
    ) -> None:
        if model is None and samples is None:
            raise ValueError("wanted model=RUN or samples=FILE.npz, got neither")
        self.protocol, self.model = protocol, model
        self.pipeline = None if model is None else pipeline.load(model, device=device)
        if self.pipeline is not None and self.pipeline.has_prior:
            self._prepare(self.pipeline.prior, samples_it=samples is None)
        self.data = self._typed(data) if data else None if model is None else data_of(model)
        self.given = None if samples is None else sets.read(samples)
        self.reference = self._reference()
        self._check()

    @property
    def has_prior(self) -> bool:
        """Whether there is a model that makes images."""
        return self.pipeline is not None and self.pipeline.has_prior

    def _prepare(self, prior: Prior, *, samples_it: bool) -> None:
        """Set the prior up as the protocol says; what it does not have is refused before any data
        is read."""
        if prior.text_size is not None:
            raise ValueError(
                f"{self.model} is a text-to-image model, and an evaluation of one needs a caption "
                "for each image, which is not supported; make pictures of your captions with "
                "sample.py text= and type model=null samples=FILE.npz"
            )
        draws = self.protocol.bound_samples
        if samples_it:
            arguments.checked_knobs(prior, self.protocol.knobs)
        if draws is not None and prior.bound_samples is None:
            raise ValueError(
                "protocol.bound_samples is of priors whose bound is drawn (absorbing), got "
                f"{draws} with {type(prior).__name__}; type protocol.bound_samples=null"
            )
        prior.bound_samples = draws or prior.bound_samples

    def split(self, name: str, n: int | None = None, seed: int = 0) -> Images:
        """Images of the run's own data; see sets.of_split."""
        return sets.of_split(self._data(), name, n, seed)

    def train(self) -> Images:
        """All training images."""
        recipe = self.protocol.reference
        if recipe.npz is None and recipe.split == "train" and recipe.n is None:
            return self.reference
        return self.split("train")

    def held_out(self) -> Images:
        """The validation images that likelihood and reconstruction are about."""
        n = self.protocol.validation_images
        return self.split("val", min(n, len(self._data().val)) if n else None)

    def _reference(self) -> Images:
        recipe = self.protocol.reference
        if recipe.npz is not None:
            read = sets.read(recipe.npz, recipe.sha256)
            if recipe.n is None:
                return read
            if recipe.n > len(read):
                raise ValueError(
                    f"wanted protocol.reference.n={recipe.n} images of {recipe.npz}, which holds "
                    f"{len(read)}; type a smaller one, or null for all"
                )
            order = torch.randperm(len(read), generator=torch.Generator().manual_seed(recipe.seed))
            return read.take(order[: recipe.n].sort().values)
        if recipe.needs_npz is not None:
            raise ValueError(
                f"protocol {self.protocol.name} compares with {recipe.needs_npz}; type "
                "protocol.reference.npz=PATH of it"
            )
        return self.split(recipe.split, recipe.n, recipe.seed)

    def _typed(self, node: dict[str, Any]) -> ImageData:
        if "size" not in node:
            raise ValueError(
                "an evaluation compares images, and data=cache holds latents; type data=NAME of "
                "the images, for instance data=folder data.root=DIR"
            )
        if self.pipeline is None:
            return built(node)
        ours, size = list(self.pipeline.tokenizer.image_size), node.get("size")
        if size is not None and (size if isinstance(size, list) else [size, size]) != ours:
            raise ValueError(
                f"wanted data.size={ours}, the size of the images of {self.model}, got {size}; "
                "leave data.size out"
            )
        return built({**node, "size": ours})

    def _data(self) -> ImageData:
        if self.data is None:
            raise ValueError(
                "there is no data to compare with: type model=RUN (a run folder with its "
                "config.yaml, not trained on a cache of latents), data=NAME (imagenet, folder, "
                "...) or protocol.reference.npz=PATH"
            )
        return self.data

    def _check(self) -> None:
        """What would stop the evaluation after minutes of sampling stops it now."""
        protocol, reference = self.protocol, self.reference
        counts = {"reference images": len(reference)}
        if self.given is not None or self.has_prior:
            counts["samples"] = protocol.samples if self.given is None else len(self.given)
        for name, n in counts.items():
            if n <= protocol.neighbors:
                raise ValueError(
                    f"precision and recall with protocol.neighbors={protocol.neighbors} need more "
                    f"{name} than that, got {n}; type a larger number of images or a smaller "
                    "protocol.neighbors="
                )
        if protocol.splits > counts.get("samples", protocol.splits):
            raise ValueError(
                f"protocol.splits={protocol.splits} parts of the Inception Score need as many "
                f"samples, got {counts['samples']}; type protocol.splits=1"
            )
        if not self.has_prior and self.given is None and protocol.validation_images == 0:
            raise ValueError(
                "a tokenizer is measured on validation images, got protocol.validation_images=0; "
                "type protocol.validation_images=null"
            )
        if self.given is not None:
            quality.check_sizes(self.given.images, reference.images, reference.source)
        if self.pipeline is not None:
            blank = torch.empty(1, 3, *self.pipeline.tokenizer.image_size)
            quality.check_sizes(blank, reference.images, reference.source)
        if self.pipeline is not None and self.has_prior:
            classes, source = self.pipeline.prior.num_classes, self.given or reference
            if classes:
                self._check_folders()
                generator.check_classes(source.labels, classes, source.source)
            if self.given is None:
                labels = self.train().labels if self.data is not None else None
                generator.labels_of(protocol, classes, labels)

    def _check_folders(self) -> None:
        """A folder of samples with one subfolder per class has only classes of the model."""
        assert self.pipeline is not None
        names = self.pipeline.facts.get("class_names")
        if self.given is None or not names or not Path(self.given.source).is_dir():
            return
        folders = {path.parent.name for path in Path(self.given.source).glob("*/*")}
        if unknown := sorted(folders - set(names)):
            raise ValueError(
                f"class mismatch: {self.given.source} has the subfolder {unknown[0]}, the model "
                f"has only the classes {', '.join(names[:10])}{', ...' if names[10:] else ''}; "
                "take it out, or put the pictures into one folder without subfolders"
            )

    def described(self) -> dict[str, Any]:
        """The model, for the card."""
        if self.model is None or self.pipeline is None:
            return {"path": self.given.source if self.given else "images"}
        loaded, facts = self.pipeline, self.pipeline.facts
        described: dict[str, Any] = {
            "path": str(self.model),
            **({"given_samples": self.given.source} if self.given else {}),
            "tokenizer": type(loaded.tokenizer).__name__,
            "tokenizer_fingerprint": _fingerprint(self.model, "tokenizer"),
            "image_size": list(loaded.tokenizer.image_size),
            "parameters tokenizer": sum(p.numel() for p in loaded.tokenizer.parameters()),
            "steps": facts.get("steps"),
            "training_images_seen": facts.get("images"),
        }
        if loaded.has_prior:
            described |= {
                "family": type(loaded.prior).__module__.rsplit(".", 1)[-1],
                "prior": type(loaded.prior).__name__,
                "prior_fingerprint": _fingerprint(self.model, "prior"),
                "classes": loaded.prior.num_classes,
                "likelihood": loaded.prior.likelihood,
                "parameters prior": sum(p.numel() for p in loaded.prior.parameters()),
            }
        if facts.get("knobs_for_fid"):
            described["settings that its authors took for FID"] = facts["knobs_for_fid"]
        return described


def data_of(model: Path) -> ImageData | None:
    """The images that a run was trained on, by its config.yaml; None beside an export without one,
    or if it was trained on latents (data=cache)."""
    for folder in (model, *model.parents[:2]):
        path = folder / "config.yaml"
        if path.is_file():
            try:
                node = dict(yaml.safe_load(path.read_text())["data"])
            except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, ValueError) as error:
                raise ValueError(
                    f"{path} does not say what the run was trained on "
                    f"({type(error).__name__}); type data=NAME, for instance data=emoji"
                ) from error
            return built(node) if "size" in node else None
    return None


def which(model: Path) -> str:
    """What of a run is evaluated, for people: its end, or the best that small_fd kept."""
    best = model / "best"
    if not best.is_dir():
        return f"model: {model}"
    return f"model: {model} as training left it; small_fd kept its best: type {best} for that one"


def built(node: dict[str, Any]) -> ImageData:
    """The data of a config node."""
    return build.model(node, global_batch=1, accumulate=1, seed=0)


def _fingerprint(model: Path, part: str) -> str | None:
    """Of the tokenizer or the prior in a run or export folder."""
    for folder in (model / "pipeline" / part, model / part, model):
        if (folder / "model.safetensors").is_file():
            return checkpoint.read_header(folder)["fingerprint"]
    return None
