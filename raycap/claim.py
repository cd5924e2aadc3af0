"""Whose output is it: a run notes its settings there, and another run's are refused."""

from __future__ import annotations

from typing import Any

from raycap import storage
from raycap.errors import UserError

_MOST_CHANGES = 3  # that an error names


def is_claimed(output: str, name: str, settings: dict[str, Any], what: str = "run", remedy: str = "") -> bool:
    """Whether a run of these settings has begun in an output.

    Args:
        output: directory or s3:// prefix.
        name: of the file in it that has the settings.
        settings: all that must be the same for the run to be gone on with.
        what: noun for the error.
        remedy: what one can do besides choosing another output.

    Raises:
        UserError: a run of other settings has.
    """
    uri = storage.join(output, name)
    if not storage.exists(uri):
        return False
    refuse_other(output, storage.read_json(uri), settings, f"a {what}", remedy)
    return True


def refuse_other(output: str, there: Any, here: Any, what: str, remedy: str = "") -> None:
    """
    Args:
        there: settings of what ``output`` holds.
        here: those asked for.
        what: it holds, for the error.
        remedy: as of :func:`is_claimed`.

    Raises:
        UserError: they differ.
    """
    changes = sorted(_differences(there, here))
    if changes:
        raise UserError(
            f"output = {output}: holds {what} with other settings ({'; '.join(changes[:_MOST_CHANGES])}"
            f"{'; ...' if len(changes) > _MOST_CHANGES else ''}); choose another output{remedy}"
        )


def claim(output: str, name: str, settings: dict[str, Any]) -> None:
    """Note the settings in an output.

    Raises:
        UserError: it cannot be written.
    """
    try:
        storage.write_json(storage.join(output, name), settings)
    except OSError as error:
        raise UserError(f"output = {output}: cannot be written ({error}); choose another output") from None


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        return [d for key in keys for d in _differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == after else [f"{path} is {before!r} there, {after!r} here"]
