"""The folder of a latent cache, local or fsspec: every file whole or not there, one writer."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
from filelock import FileLock, Timeout

CACHED = (".arrow", ".json", ".writing", ".lock")  # endings of a cache's files
HALF_WRITTEN = ".*.writing"  # of files under way


class Folder:
    """A folder at a local path or an fsspec one (s3://..., memory://...), written file by file,
    each whole or not at all."""

    def __init__(self, root: str) -> None:
        self.root = str(root)
        self.files, self.path = fsspec.url_to_fs(self.root)
        protocol = self.files.protocol
        self.local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)
        # Files are begun beside their target, so that a rename is enough; those of a remote cache
        # in a folder of its own on this machine, and are uploaded in one piece.
        mark = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        self.desk = Path(self.path) if self.local else _own_files("writing") / mark

    def exists(self, name: str) -> bool:
        """Is there such a file?"""
        return self.files.exists(f"{self.path}/{name}")

    def strangers(self) -> list[str]:
        """Names in the folder, and in train/ and val/ of it, of what no cache has."""
        found = []
        for place in ("", "/train", "/val"):
            if not self.files.isdir(self.path + place):
                continue
            for entry in self.files.ls(self.path + place, detail=False):
                name = entry.rstrip("/").rsplit("/", 1)[-1]
                if not (name.endswith(CACHED) or (not place and name in ("train", "val"))):
                    found.append(f"{place}/{name}".lstrip("/"))
        return sorted(found)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self.files.size(f"{self.path}/{name}")

    def read(self, name: str) -> str:
        """A small text file."""
        return self.files.cat_file(f"{self.path}/{name}").decode()

    def write(self, name: str, text: str) -> None:
        """Write a small text file."""
        with self.writing(name) as temporary:
            temporary.write_text(text)

    @contextmanager
    def alone(self) -> Iterator[list[str]]:
        """Inside, no other command of this machine writes here; gives the names of the half-written
        files that killed ones had left, and that are removed.

        Raises ValueError if one writes here right now or this is a file, OSError if nobody may."""
        lock = FileLock(self.desk / ".lock")  # the system lets go of it when the process dies
        try:
            self.desk.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process writes the cache in {self.root}; wait for it, stop it, or type "
                "another out=DIR"
            ) from None
        except (FileExistsError, NotADirectoryError):
            raise ValueError(
                f"wanted out= as a folder, but {self.root} is a file or lies in one; type another "
                "out=DIR"
            ) from None
        except OSError as error:
            raise OSError(
                f"cannot write in {self.root} ({error.strerror or error}); make it writable, or "
                "type another out=DIR"
            ) from error
        try:
            left = [path for place in ("", "train", "val") for path in self._half_written(place)]
            for path in left:
                path.unlink(missing_ok=True)
            yield [str(path.relative_to(self.desk)) for path in left]
        finally:
            lock.release()

    def _half_written(self, place: str) -> list[Path]:
        return sorted((self.desk / place).glob(HALF_WRITTEN))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a local path to write to; the file appears under its name if all went well."""
        target, begun = f"{self.path}/{name}", self.desk / name
        temporary = begun.with_name(f".{begun.name}.{os.getpid()}.writing")
        try:
            self.files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if self.local:
                os.replace(temporary, target)
            else:
                self.files.put_file(str(temporary), target)
        except OSError as error:
            raise OSError(
                f"could not write {self.root}/{name} ({error.strerror or error}); what is there is "
                "kept: free some space, or make it writable, and type the same command again"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def here(self, name: str) -> str:
        """A local path of the file; a remote one is downloaded once, and again if it changed."""
        if self.local:
            return f"{self.path}/{name}"
        kept = _own_files("cache")
        url = self.files.unstrip_protocol(f"{self.path}/{name}")
        options = {"cache_storage": str(kept), "check_files": True}
        found = fsspec.open_local(f"filecache::{url}", filecache=options)
        return str(found)


def _own_files(what: str) -> Path:
    """A folder of this user on this machine."""
    return Path(tempfile.gettempdir()) / f"vqgen_{what}_{os.getuid()}"
