"""What the importer has to know about a family of published models; one file per family says it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from vqgen.contracts import LatentSpec, Size, TokenSpec
from vqgen.importing.layout import Row, Shapes


@dataclass(frozen=True)
class Hints:
    """What keys and shapes do not tell.

    config  the peer's constructor arguments, flat; {} if the user has none
    size    (height, width) of the images, as typed; None: what is published for this file
    factor  pixels per side of a token, of the tokenizer beside a prior
    scales  of the prior beside a multi-scale tokenizer
    name    of the file: the released ones say their size in it
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    size: Size | None = None
    factor: int = 16
    scales: Sequence[Size] | None = None
    name: str = ""


@dataclass(frozen=True)
class Description:
    """A model as read from the keys and shapes of a file.

    architecture  the node that build.py makes it from
    levels        of an autoencoder
    spec          of a prior: the latents it was trained on; of a tokenizer None
    num_classes   of a prior
    factor        of a published prior: pixels per side of the tokens it was trained on
    own           tensors of ours that the peer does not have, with their values
    peers_own     tensors of the peer that follow from its sizes, computed for its latents.
                  At import they may be there, and are checked, then dropped
    loose         those of them whose values do not matter, with what an export puts there
    unsaved       those of them that the peer itself does not write
    untold        the peer's settings that no tensor of the file tells: where --config does not say
                  them either, `architecture` has the published ones
    facts         what the saved model says about itself: settings for sampling and their source
    """

    architecture: dict[str, Any]
    levels: int = 0
    spec: TokenSpec | None = None
    num_classes: int = 0
    factor: int | None = None
    own: dict[str, Tensor] = field(default_factory=dict)
    peers_own: Callable[[LatentSpec | None], dict[str, Tensor]] = lambda spec: {}
    loose: Mapping[str, str] = field(default_factory=dict)
    unsaved: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of published models.

    holds     the class of ours whose models it may hold: of a tokenizer that of its bottleneck
    codes     the table with a row for each code
    mark      a key that every file of the family has and no other family's
    places    where the state dict lies in the file, in the order the peer's own scripts look
    describe  (shapes by the peer's names, hints) -> the model; KeyError for a name it misses
    rows      the names of the model with this architecture, see layout.py
    settings  (architecture with all defaults, its latents) -> the peer's constructor arguments
    unbuilt   (architecture with all defaults) -> what the peer's own code would build otherwise
              though the names fit, in words with a cure
    fixed     numbers of an autoencoder that the peer's code has written in
    averaged  whether a stored moving average ("ema") comes before the weights themselves
    ignored   patterns of further keys, with the reason why they are left
    partner   of a prior: the family of its tokenizer
    """

    name: str
    kind: Literal["tokenizer", "prior"]
    mark: str
    holds: str
    codes: str
    places: tuple[str, ...]
    describe: Callable[[Shapes, Hints], Description]
    rows: Callable[[dict[str, Any]], list[Row]]
    settings: Callable[[dict[str, Any], TokenSpec], dict[str, Any]]
    unbuilt: Callable[[dict[str, Any]], list[str]] = lambda node: []
    fixed: Mapping[str, Any] = field(default_factory=dict)
    averaged: bool = False
    ignored: tuple[tuple[str, str], ...] = ()
    partner: str | None = None
