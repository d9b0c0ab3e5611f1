"""The command line: Hydra entry points whose user errors are one sentence, checked before any work
is done.

With build.py and overrides.py the only files that know Hydra."""

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, InstantiationException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from vqgen import overrides
from vqgen.overrides import CONF

USER_ERRORS = (ValueError, OSError, HydraException, OmegaConfBaseException)


class SharedGroups(SearchPathPlugin):
    """Lets every entry point see the groups that all of them share: conf/data, conf/trainer,
    conf/logger, conf/debug."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add conf/ behind the entry point's own folder."""
        search_path.append("vqgen", f"file://{CONF}")


Plugins.instance().register(SharedGroups)


def entry(
    folder: str, name: str
) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Make a Hydra entry point of conf/<folder>/<name>.yaml whose user errors are one sentence,
    exit code 2.

    The decorated function may return an exit code. Ctrl-C that it does not answer itself (training
    does) is one line, exit code 130. HYDRA_FULL_ERROR=1 shows tracebacks."""

    def decorate(function: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        @functools.wraps(function)
        def guarded(config: DictConfig) -> None:
            try:
                code = function(config)
            except USER_ERRORS as error:
                refuse(error)
            if code:
                sys.exit(code)

        started = hydra.main(version_base="1.3", config_path=str(CONF / folder), config_name=name)(
            guarded
        )

        @functools.wraps(function)
        def start() -> None:
            try:
                if not any(word.startswith("-") for word in sys.argv[1:]):  # Hydra's flags
                    try:
                        sys.argv[1:] = overrides.check(folder, name, sys.argv[1:])
                    except USER_ERRORS as error:
                        refuse(error)
                started()
            except KeyboardInterrupt:
                done = "anything was trained" if name.startswith("train_") else "it was done"
                print(f"vqgen: stopped before {done}", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)

        return start

    return decorate


class Parser(argparse.ArgumentParser):
    """Of the scripts without Hydra: what was typed wrong is one sentence there too."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        refuse(ValueError(f"{message}; --help tells what may be typed"))


def refuse(error: BaseException) -> NoReturn:
    """Print what was wrong as one sentence and leave with code 2."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    print(f"vqgen: {root_cause(error)}", file=sys.stderr)
    print("(HYDRA_FULL_ERROR=1 shows the traceback)", file=sys.stderr)
    sys.exit(2)


def root_cause(error: BaseException) -> BaseException:
    """The error that a `_target_` raised, out of Hydra's wrapping."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def compose(name: str, words: list[str]) -> DictConfig:
    """The config again, inside an entry point, under other overrides than were typed."""
    return hydra.compose(name, words)


def merged(stored: list[str], group: str | None = None) -> list[str]:
    """The overrides of an earlier run, then those typed now, which win; see `overrides.merged`."""
    return overrides.merged(stored, typed_overrides(), group)


def typed_overrides() -> list[str]:
    """The overrides of this start, as typed."""
    return list(HydraConfig.get().overrides.task)


def typed_keys() -> set[str]:
    """The names of the settings that were typed."""
    return {overrides.key_of(word) for word in typed_overrides()}


def choice(group: str) -> str:
    """The option in use of a group (`tokenizer` -> "vqgan"), for names and tables."""
    return str(HydraConfig.get().runtime.choices.get(group))
