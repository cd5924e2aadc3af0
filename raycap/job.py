"""The command line that every job shares: ``--config FILE.yaml [a.b=value ...]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from raycap import storage
from raycap.config import Config, load_config
from raycap.errors import UserError

ConfigT = TypeVar("ConfigT", bound="JobConfig")

USER_ERROR_EXIT_CODE = 2


class JobConfig(Config):
    """What every job's configuration has."""

    output: str
    """Directory or s3:// prefix of the results; metrics.json is written into it."""


def run_job(
    config_class: type[ConfigT], main: Callable[[ConfigT], dict[str, Any]], argv: Sequence[str] | None = None
) -> None:
    """Parse the command line, run ``main``, write its result as metrics.json and print it as the last line.

    Exits with 2 and the message alone on a :class:`UserError`.
    """
    parser = argparse.ArgumentParser(description=main.__doc__, epilog=_fields(config_class), formatter_class=_HELP)
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="local path or s3:// URI")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="replaces a value of the file")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(config_class, arguments.config, arguments.overrides)
        metrics = main(config)
        storage.write_json(storage.join(config.output, "metrics.json"), metrics)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)
    sys.stderr.flush()
    print(json.dumps(metrics, ensure_ascii=False), flush=True)


_HELP = argparse.RawDescriptionHelpFormatter


def _fields(config_class: type[Config]) -> str:
    lines = ["keys of the configuration:"]
    for name, field in config_class.model_fields.items():
        default = "" if field.is_required() else f" (default: {field.get_default(call_default_factory=True)!r})"
        lines.append(f"  {name}: {' '.join((field.description or '').split())}{default}")
    return "\n".join(lines)
