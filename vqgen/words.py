"""Names that users type: the nearest right one for a wrong one."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint at the nearest valid word whose last part is the same (prior.lr -> train.lr), else
    near (loss.gan.strat -> loss.gan.start); nothing if none is."""
    ends = {known: known.rsplit(".", 1)[-1] for known in words}
    end = word.rsplit(".", 1)[-1]
    near = get_close_matches(end, set(ends.values()) - {"_target_"}, n=10, cutoff=0.6)
    same = [known for known in ends if ends[known] == end and end != "_target_"]
    close = get_close_matches(word, same or [k for k in ends if ends[k] in near], n=1)
    if not close and get_close_matches(end, near, n=1, cutoff=0.8):  # of another section
        close = [known for known in ends if ends[known] == near[0]]
    return f"; did you mean {close[0]}?" if close else ""


def cure(given: object, words: Iterable[str], otherwise: str) -> str:
    """The end of a refusal of a value: the nearest of the words, or to type `otherwise`."""
    return nearest(str(given), words) or f"; type {otherwise}"
