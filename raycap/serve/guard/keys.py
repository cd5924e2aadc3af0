"""Who may ask: bearer keys with names, read from a file or an environment variable."""

import hashlib
import hmac
import os
import re

import yaml
from pydantic import model_validator

from raycap import storage
from raycap.config import Config
from raycap.errors import UserError
from raycap.serve.errors import RequestError

MIN_KEY_CHARACTERS = 16

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What RFC 6750 lets stand after "Bearer".
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Keys(Config):
    """Where the keys are: YAML, a line ``name: key`` for each."""

    file: str | None = None
    """A local path or s3:// URI."""

    environment: str | None = None
    """Name of an environment variable that holds the same lines."""

    @model_validator(mode="after")
    def _one_place(self) -> "Keys":
        if (self.file is None) == (self.environment is None):
            raise ValueError("give exactly one of file and environment")
        return self

    def absolute(self) -> "Keys":
        """The same with its path as any process of the cluster finds it."""
        return self if self.file is None else self.model_copy(update={"file": storage.absolute(self.file)})


class KeyRing:
    """Tells whose key a request bears. Only digests of the keys stay in memory.

    Raises:
        UserError: the place cannot be read, or a line is wrong; no message repeats a key.
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._digests: dict[str, bytes] = {}
        self.reload()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._digests)

    def reload(self) -> None:
        """Read the place again (it may block), so that keys change without a restart.

        Raises:
            UserError: as at the start; then the keys read before remain.
        """
        text, origin = _read(self._keys)
        self._digests = {name: _digest(key) for name, key in _parse(text, origin).items()}

    def identify(self, authorization: str | None) -> str:
        """The name of the key in an ``Authorization`` header.

        Raises:
            RequestError: 401, no key or an unknown one.
        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            message = "authorization: no key; send the header `Authorization: Bearer KEY`"
            raise RequestError(401, "missing_key", message, "authorization", _CHALLENGE)
        digest, found = _digest(key), None
        # Every key is compared, whichever fits: the time tells neither a match nor its place.
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        if found is None:
            message = "authorization: unknown key; send one that the operator gave you"
            raise RequestError(401, "invalid_key", message, "authorization", _CHALLENGE)
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _read(keys: Keys) -> tuple[str, str]:
    """The lines, and what to call their place in an error."""
    if keys.environment is not None:
        text = os.environ.get(keys.environment)
        if text is None:
            raise UserError(f"keys.environment = {keys.environment}: not set; set it to `name: key` lines")
        return text, f"keys.environment = {keys.environment}"
    assert keys.file is not None  # the config sees to it
    origin = f"keys.file = {keys.file}"
    try:
        return storage.read_bytes(keys.file).decode(), origin
    except FileNotFoundError:
        raise UserError(f"{origin}: no such file; give the path of a file of `name: key` lines") from None
    except UnicodeDecodeError:
        raise UserError(f"{origin}: not UTF-8; give a text file of `name: key` lines") from None
    except OSError as error:
        raise UserError(f"{origin}: cannot be read ({error}); give the path of a file of `name: key` lines") from None


def _parse(text: str, origin: str) -> dict[str, str]:
    # Nodes instead of values: they keep line numbers and repeated names, and `12e4` stays text.
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        # Of the error only the line: its text may quote a key.
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{origin}{where}: not YAML; write `name: key`, the key in quotes") from None
    except yaml.YAMLError:
        raise UserError(f"{origin}: not YAML; write `name: key` lines") from None
    if root is None:
        raise UserError(f"{origin}: empty; give at least one line `name: key`")
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{origin}: no mapping; write a line `name: key` for each key")
    if not root.value:
        raise UserError(f"{origin}: empty; give at least one line `name: key`")
    keys: dict[str, str] = {}
    for name_node, key_node in root.value:
        line = f"{origin} line {name_node.start_mark.line + 1}"
        name = name_node.value if isinstance(name_node, yaml.ScalarNode) else ""
        if not _NAME.fullmatch(name):
            # It may be a key on the wrong side of the colon: not repeated.
            raise UserError(f"{line}: not a name; use 1 to 64 of A-Z a-z 0-9 . _ - before the colon")
        if name in keys:
            raise UserError(f"{line}, {name}: this name is there already; give each key a name of its own")
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else ""
        if len(key) < MIN_KEY_CHARACTERS:
            raise UserError(f"{line}, {name}: key of {len(key)} characters; give at least {MIN_KEY_CHARACTERS}")
        if not _KEY.fullmatch(key):
            raise UserError(f"{line}, {name}: key with other characters than A-Z a-z 0-9 . _ ~ + / - =; make another")
        if key in keys.values():
            raise UserError(f"{line}, {name}: this key has another name too; give each name a key of its own")
        keys[name] = key
    return keys
