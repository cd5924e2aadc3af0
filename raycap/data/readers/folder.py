"""What readers of a folder of images beside annotation files share: finding, opening and naming files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import ijson
import pyarrow as pa
from pydantic import AfterValidator, Field, StringConstraints

from raycap import storage
from raycap.config import Config
from raycap.data.catalog import Catalog
from raycap.errors import UserError

_BUFFER_BYTES = 1 << 20
_DETAIL_CHARACTERS = 200


def _known_scheme(uri: str) -> str:
    if "://" in uri and not storage.is_s3(uri):
        raise ValueError("unknown scheme; give a local path or s3://bucket/prefix")
    return storage.absolute(uri)


def _sum_to_one(fractions: dict[str, float]) -> dict[str, float]:
    if abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions must sum to 1, these sum to {sum(fractions.values()):g}")
    return fractions


Place = Annotated[str, AfterValidator(_known_scheme)]
"""A local path (made absolute: Ray's workers have another working directory) or an s3:// URI."""

SplitName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_]+$")]
Fractions = Annotated[dict[SplitName, Annotated[float, Field(gt=0, le=1)]], AfterValidator(_sum_to_one)]


class Line(NamedTuple):
    """A line of a text file, and its ``file:number``."""

    where: str
    text: str


class FolderSource(Config):
    """A folder of images beside annotation files."""

    path: Place
    """Directory or s3:// prefix of the data; the other names are below it, or absolute themselves."""

    images: str = "images"
    """Folder of the images, subfolders included."""

    def read_image(self, name: str) -> bytes:
        """The image file as it is.

        Raises:
            FileNotFoundError: it is gone.
        """
        return storage.read_bytes(storage.join(self.locate(self.images), name))

    def locate(self, name: str) -> str:
        if name.startswith("/") or storage.is_s3(name):
            return name
        return self.path if name in ("", ".") else storage.join(self.path, name)

    def add_files(self, catalog: Catalog, images: str | None = None, field: str = "images", prefix: str = "") -> None:
        """Add every file of an image folder to the catalog, named below the folder, after ``prefix``.

        Raises:
            UserError: there is no such folder, or it cannot be listed.
        """
        folder = self.locate(self.images if images is None else images)
        try:
            for entry in storage.list_files(folder):
                catalog.add_file(prefix + entry.name, entry.num_bytes)
        except FileNotFoundError:
            raise UserError(f"source.{field} = {folder}: no such folder; give the folder of the images") from None
        except OSError as error:
            raise UserError(f"source.{field} = {folder}: cannot be listed ({error}); check access to it") from None

    def open_annotations(self, name: str, field: str) -> pa.NativeFile:
        """
        Raises:
            UserError: it is not there, or is no file.
        """
        uri = self.locate(name)
        try:
            return storage.open_input(uri)
        except FileNotFoundError:
            raise UserError(f"source.{field} = {uri}: no such file; give the annotation file's place") from None
        except OSError as error:
            raise UserError(f"source.{field} = {uri}: cannot be read ({error}); give a file that can be") from None

    def lines(self, name: str, field: str, catalog: Catalog) -> Iterator[Line]:
        """The lines of a UTF-8 text file that are not blank; one that is not UTF-8 is left out as malformed."""
        short = name.rsplit("/", 1)[-1]
        with self.open_annotations(name, field) as file:
            for number, raw in enumerate(io.BufferedReader(file, _BUFFER_BYTES), start=1):
                where = f"{short}:{number}"
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    leave_out_row(catalog, where, repr(raw))
                    continue
                if text.strip():
                    yield Line(where, text.rstrip("\r\n"))

    def json_items(self, name: str, field: str, prefix: str) -> Iterator[Line | dict[str, Any]]:
        """The objects of a list within a JSON file, one at a time; a :class:`Line` for one that is no object.

        Raises:
            UserError: the file is not JSON, or is cut off.
        """
        with self.open_annotations(name, field) as file:
            try:
                for number, item in enumerate(ijson.items(file, f"{prefix}.item")):
                    where = f"{name.rsplit('/', 1)[-1]}:{prefix}[{number}]"
                    yield {**item, "where": where} if isinstance(item, dict) else Line(where, repr(item))
            except ijson.JSONError as error:
                reason = " ".join(str(error).split())[:_DETAIL_CHARACTERS]
                raise UserError(f"source.{field} = {self.locate(name)}: not JSON: {reason}; fetch it again") from None


def leave_out_row(catalog: Catalog, where: str, text: str) -> None:
    catalog.leave_out("malformed_row", where, text[:_DETAIL_CHARACTERS])
