"""What an import or export makes: looked at before anything is read, then made whole or not at
all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check(out: Path, *names: str) -> None:
    """Raise a ValueError if out/<name> cannot be made: something else is there."""
    try:
        out.exists()
    except OSError as error:  # a name that no disk takes
        raise ValueError(f"--out cannot be made ({error.strerror}); type another --out") from error
    for folder in (out, *out.parents):
        if folder.exists() and not folder.is_dir():
            raise ValueError(
                f"wanted --out as a folder to make, but {folder} is a file; type another --out"
            )
    taken = [str(out / name) for name in names if (out / name).exists()]
    if taken:
        verb = "exist" if len(taken) > 1 else "exists"
        raise ValueError(f"{' and '.join(taken)} {verb} already; type another --out")


@contextmanager
def fresh_folder(out: Path, *names: str) -> Iterator[Path]:
    """Yield an empty folder on the same disk; at the end its files or folders `names` become
    out/<name>, all or none. Raises ValueError if one is there already, or `out` cannot be
    written."""
    check(out, *names)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    temporary = out / f".{os.getpid()}.writing"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ValueError(
            f"wanted --out as a folder to make, but {out} cannot be made ({error.strerror}); type "
            "another --out"
        ) from error
    try:
        yield temporary
        for name in names:
            os.replace(temporary / name, out / name)
    except BaseException:
        for name in names:
            shutil.rmtree(out / name, ignore_errors=True)
            with contextlib.suppress(OSError):
                (out / name).unlink()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in made:  # empty again if it failed
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
