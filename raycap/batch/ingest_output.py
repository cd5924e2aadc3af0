"""The output directory of an ingest while it is filled: what an earlier run left there, and what remains to do.

    {output}/_index/config.json          the configuration of the run in progress
    {output}/_index/train-00000.json     a shard's images and captions, for the task that writes it
    {output}/_index/train-00000.done     that task's report, written after its Parquet file
    {output}/left_out.csv                reason,name,detail
    {output}/ingest.json                 configuration and metrics of the finished run
    {output}/manifest.json               last: the rows are finished

``_index`` is deleted at the end. What another configuration left there is never mixed in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from raycap import storage
from raycap.batch.ingest_shard import INDEX, ShardReport, index_file, report_file
from raycap.claim import refuse_other
from raycap.data.catalog import LeftOut, Shard
from raycap.data.rows import MANIFEST
from raycap.errors import UserError

_FINISHED = "ingest.json"
_LEFT_OUT = "left_out.csv"
_OURS = re.compile(rf"\w+-\d{{5,}}\.parquet|{INDEX}/.*|{_FINISHED}|{_LEFT_OUT}|metrics\.json")


class Plan(NamedTuple):
    """A shard that must be in the output."""

    name: str
    digest: str
    num_images: int
    done: bool


class IngestOutput:
    """The directory, and the configuration that its rows come from."""

    def __init__(self, uri: str, settings: dict[str, Any]) -> None:
        self.uri, self._settings = uri, settings

    def check(self) -> dict[str, Any] | None:
        """The metrics where the same configuration is finished there; None where there is work to do.

        Raises:
            UserError: another configuration's rows are there.
        """
        if storage.exists(storage.join(self.uri, MANIFEST)):
            finished = self._read_json(_FINISHED)
            self._refuse_other(finished.get("config"))
            self.clear_index()
            return dict(finished["metrics"])
        if storage.exists(storage.join(self.uri, INDEX, "config.json")):
            self._refuse_other(self._read_json(f"{INDEX}/config.json"))
        return None

    def _read_json(self, name: str) -> Any:
        try:
            return storage.read_json(storage.join(self.uri, name))
        except FileNotFoundError:
            return {}

    def _refuse_other(self, settings: dict[str, Any] | None) -> None:
        refuse_other(self.uri, settings or {}, self._settings, "rows", ", or pass overwrite=true")

    def clear(self) -> None:
        """Delete what an ingest wrote there, and nothing else."""
        storage.delete(storage.join(self.uri, MANIFEST))  # first: without it nothing there counts as rows
        try:
            names = [entry.name for entry in storage.list_files(self.uri) if _OURS.fullmatch(entry.name)]
        except FileNotFoundError:
            return
        for name in names:
            storage.delete(storage.join(self.uri, name))
        self.clear_index()

    def clear_index(self) -> None:
        storage.delete(storage.join(self.uri, INDEX))

    def start(self) -> None:
        """
        Raises:
            UserError: nothing can be written there.
        """
        try:
            storage.write_json(storage.join(self.uri, INDEX, "config.json"), self._settings)
        except OSError as error:
            raise UserError(f"output = {self.uri}: cannot be written ({error}); choose another output") from None

    def plan(self, shards: Iterable[Shard]) -> Iterator[Plan]:
        """Write the index of every shard; one whose report is there for the same images is done."""
        names = {entry.name for entry in storage.list_files(storage.join(self.uri, INDEX))}
        planned = set()
        for shard in shards:
            index = json.dumps({"split": shard.split, "records": shard.records}, ensure_ascii=False).encode()
            digest = hashlib.sha256(index).hexdigest()
            planned.add(shard.name)
            done = f"{shard.name}.done" in names and self.read_report(shard.name).digest == digest
            if not done:
                storage.write_bytes(index_file(self.uri, shard.name), index)
            yield Plan(shard.name, digest, len(shard.records), done)
        for name in names:  # of an earlier run, over raw data that have changed since
            shard_name = name.removesuffix(".done")
            if name.endswith(".done") and shard_name not in planned:
                storage.delete(storage.join(self.uri, f"{shard_name}.parquet"))
                storage.delete(report_file(self.uri, shard_name))

    def read_report(self, name: str) -> ShardReport:
        return ShardReport.model_validate_json(storage.read_bytes(report_file(self.uri, name)))

    def write_left_out(self, items: Iterable[LeftOut]) -> None:
        storage.write_csv(storage.join(self.uri, _LEFT_OUT), LeftOut._fields, items)

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        storage.write_json(storage.join(self.uri, _FINISHED), {"config": self._settings, "metrics": metrics})
