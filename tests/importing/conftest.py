"""The import and export commands as typed."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def typed(script: str, words: list[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script as if it was typed; the exit code."""
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        module.main()
        sys.exit(0)
    return int(left.value.code or 0)


Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda script, *words: typed(script, list(words), monkeypatch)


@pytest.fixture
def refused(run: Run, capsys, tmp_path: Path) -> Callable[..., str]:
    """Import these files, which must fail with one sentence and leave nothing; the sentence."""

    def call(*words: Any, out: Path | None = None) -> str:
        target = out or tmp_path / "refused"
        before = sorted(tmp_path.rglob("*"))
        assert run("import_weights", *words, "--out", target) == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err and printed.err.startswith("vqgen: ")
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err

    return call
