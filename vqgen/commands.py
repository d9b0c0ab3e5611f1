"""Commands to type again: complete, quoted for Hydra and for the shell."""

import re
import shlex
from collections.abc import Iterable

PLAIN = re.compile(r"[\w./:@+-]+", re.ASCII)  # what Hydra reads as one text without quotes


def override(name: str, value: object) -> str:
    """`name=value` as Hydra reads it, whatever letters the value has."""
    text = str(value)
    if not PLAIN.fullmatch(text):
        # backslashes mean themselves, but for those before a quote
        text = re.sub(
            r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", r"\'"), text
        )
        text = f"'{text}'"
    return f"{name}={text}"


def shell(start: Iterable[str], words: Iterable[str]) -> str:
    """One line for the shell: `start` and then the overrides, of which a later one of the same
    name replaces an earlier one."""
    kept = {word.lstrip("+~").partition("=")[0]: word for word in words}
    return " ".join(_quoted(word) for word in [*start, *kept.values()])


def _quoted(word: str) -> str:
    """For the shell; what is quoted for Hydra stays readable inside of double quotes."""
    readable = "'" in word and not any(letter in word for letter in '"$`\\!')
    return f'"{word}"' if readable else shlex.quote(word)
