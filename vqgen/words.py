"""Names that users type: the nearest right one for a wrong one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint at the nearest valid word, also by its last part (loss.gan.strat ->
    loss.gan.start); nothing if none is near."""
    words = list(words)
    close = get_close_matches(word, words, n=1, cutoff=0.6)
    if not close:
        by_end = {known.rsplit(".", 1)[-1]: known for known in words}
        close = [by_end[end] for end in get_close_matches(word.rsplit(".", 1)[-1], by_end, n=1)]
    return f"; did you mean {close[0]}?" if close else ""


def cure(given: object, words: Iterable[str], otherwise: str) -> str:
    """The end of a refusal of a value: the nearest of the words, or to type `otherwise`."""
    return nearest(str(given), words) or f"; type {otherwise}"
