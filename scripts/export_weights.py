"""A vqgen tokenizer or prior as a file in a published system's layout: `python
scripts/export_weights.py models/llamagen_b --part prior --as llamagen-gpt --out gpt.pt`."""

from pathlib import Path

from vqgen import cli
from vqgen.importing.convert import AUTO, FAMILIES
from vqgen.importing.export import export


def main() -> None:
    """Read what was typed, export, print a line."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a pipeline folder, or a stage-1 run")
    parser.add_argument("--part", required=True, choices=("tokenizer", "prior"))
    kinds = ", ".join(FAMILIES)
    parser.add_argument(
        "--as", default=AUTO, dest="wanted", help=f"auto: as imported, or what fits; {kinds}"
    )
    parser.add_argument("--out", required=True, type=Path, help="FILE.pt or FILE.safetensors")
    typed = parser.parse_args()
    folder = typed.folder / "pipeline" if (typed.folder / "pipeline").is_dir() else typed.folder
    try:
        lines = export(folder, typed.part, typed.out, typed.wanted)
    except cli.USER_ERRORS as error:
        cli.refuse(error)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
