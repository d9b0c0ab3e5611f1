"""Published weights into a vqgen folder: `python scripts/import_weights.py vq_ds16_c2i.pt
c2i_B_256.pt --out models/llamagen_b`, then `python sample.py pipeline=models/llamagen_b`."""

from pathlib import Path

from vqgen import cli, commands
from vqgen.importing import pairs, settings
from vqgen.importing.convert import AUTO, FAMILIES
from vqgen.importing.family import Hints
from vqgen.importing.folder import import_files


def main() -> None:
    """Read what was typed, import, print a line per file."""
    parser = cli.Parser(description=__doc__)
    add, kinds = parser.add_argument, ", ".join((AUTO, *FAMILIES))
    add("files", nargs="+", type=Path, metavar="FILE", help="a tokenizer, a prior, or both")
    add("--out", required=True, help="the folder to make")
    add("--as", action="append", default=[], dest="wanted", metavar="KIND", help=kinds)
    add("--size", metavar="N or HxW", help="pixels, where not the published ones")
    add("--weights", default=AUTO, choices=(AUTO, "model", "ema"), help="auto: as the peer does")
    add("--config", action="append", default=[], type=Path, help="the peer's settings, if needed")
    typed = parser.parse_args()
    try:
        size = None if typed.size is None else pairs.parse_size(typed.size)
        if not typed.out:
            raise ValueError("wanted --out as a folder to make, got nothing")
        out = Path(typed.out)
        hints = Hints(config=settings.read(typed.config), size=size)
        lines = import_files(
            typed.files, out, wanted=typed.wanted, weights=typed.weights, hints=hints
        )
    except cli.USER_ERRORS as error:
        cli.refuse(error)
    else:
        print("\n".join(lines))
        kind = "pipeline" if (out / "prior").is_dir() else "tokenizer"
        program = "sample.py" if kind == "pipeline" else "train_stage2.py"
        print("next:", commands.shell(["python", program], [commands.override(kind, out)]))


if __name__ == "__main__":
    main()
