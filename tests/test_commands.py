"""Commands that messages tell to type: the shell and Hydra read back what was meant."""

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from vqgen import commands

VALUES = [
    "runs/stage1/x",
    "my runs/a,b",
    "it's",
    'say "hi" [now]',
    "a\\b",
    "end\\",
    "\\'",
    "k=v",
    "ü",
]


@pytest.mark.parametrize("value", VALUES)
def test_a_quoted_override_is_read_as_it_was_meant(value: str) -> None:
    line = commands.shell(["python", "x.py"], [commands.override("data.root", value)])
    start, script, word = shlex.split(line)
    assert (start, script) == ("python", "x.py")
    (parsed,) = OverridesParser.create().parse_overrides([word])
    assert parsed.key_or_group == "data.root" and str(parsed.value()) == value


def test_plain_paths_stay_readable_and_later_words_win() -> None:
    words = ["train.lr=1", "+extra.a=2", commands.override("out", "runs/x"), "train.lr=3"]
    assert commands.shell(["python"], words) == "python train.lr=3 +extra.a=2 out=runs/x"
