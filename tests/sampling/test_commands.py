"""`torchrun --nproc_per_node=2 sample.py ...` as typed: the files of one process, written once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from tests import tiny
from tests.test_bad_input import PRIOR, stage2_run
from vqgen import checkpoint

CHECKOUT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose prior is not uniform, and a photograph."""
    root = tmp_path_factory.mktemp("runs")
    run, prior = stage2_run(root), tiny.prior()
    torch.manual_seed(3)
    torch.nn.init.normal_(prior.head.weight, std=0.5)
    folder = run / "pipeline" / "prior"
    facts = checkpoint.read_header(folder)["facts"]
    checkpoint.save_model(folder, prior, kind="prior", architecture=PRIOR, facts=facts)
    Image.fromarray(tiny.images(1)[0].permute(1, 2, 0).numpy()).save(root / "photo.png")
    return root


def type_in(folder: Path, *command: str) -> str:
    """Run it in `folder` on one thread a process; returns what it printed."""
    folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[:4000] + done.stderr[-2000:]
    return done.stdout


def frames(path: Path) -> list[bytes]:
    """The pixels of a picture or film."""
    with Image.open(path) as image:
        return [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(image)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "files"),
    [
        # nine images do not halve
        (["classes=[a,c,b]", "n=3", "batch=2"], {"samples.png", "samples.npz"}),
        # one process has none of its own
        (["classes=[b]", "n=1"], {"samples.png", "samples.npz"}),
        (
            [
                *("classes=[a]", "n=3", "batch=2", "film=true", "frames=3"),
                "edit=outpaint",
                "box=[0,0,0.5,0.5]",
            ],
            {"samples.png", "samples.npz", "samples_film.gif", "samples_film.png"},
        ),
    ],
)
def test_two_processes_write_the_files_of_one(
    trained: Path, tmp_path: Path, words: list[str], files: set[str]
) -> None:
    words = [str(CHECKOUT / "sample.py"), f"root={trained}", *words]
    if "film=true" in words:
        words.append(f"image={trained / 'photo.png'}")
    alone = type_in(tmp_path / "one", *words)
    assert type_in(tmp_path / "two", *TORCHRUN, *words) == alone, "one of the two speaks"
    assert {path.name for path in (tmp_path / "two").iterdir()} == files
    one, two = (np.load(tmp_path / name / "samples.npz") for name in ("one", "two"))
    assert one.files == two.files
    assert all(np.array_equal(one[name], two[name]) for name in one.files)
    pictures = {image.tobytes() for image in one["arr_0"]}
    assert len(pictures) > len(one["arr_0"]) / 2, "seeds matter"
    for name in files - {"samples.npz"}:
        # the pixels: the bytes of one picture compressed twice may differ
        first, second = (frames(tmp_path / folder / name) for folder in ("one", "two"))
        assert first == second, name
