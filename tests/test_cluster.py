"""What a cluster has no room for is refused; Ray itself would wait for ever."""

from __future__ import annotations

from typing import Any

import pytest

from raycap import cluster
from raycap.errors import UserError


def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": each} for each in resources]


TWO_SMALL = nodes({"CPU": 2.0}, {"CPU": 2.0})
ONE_GPU = nodes({"CPU": 8.0, "GPU": 1.0})


@pytest.mark.parametrize(
    ("there", "arguments"),
    [
        (TWO_SMALL, {"num_workers": 3, "cpus_per_worker": 1.0, "reader_cpus": 0.25}),
        (TWO_SMALL, {"num_workers": 0, "cpus_per_worker": 1.0}),
        (ONE_GPU, {"num_workers": 1, "cpus_per_worker": 4.0, "use_gpu": True}),
    ],
)
def test_what_fits_is_let_through(
    there: list[dict[str, Any]], arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: there)
    cluster.require(**{"use_gpu": False, **arguments})


@pytest.mark.parametrize(
    ("there", "arguments", "message"),
    [
        (TWO_SMALL, {"num_workers": 4, "cpus_per_worker": 1.0, "reader_cpus": 0.25}, "num_workers = 4: .*at most 3"),
        (TWO_SMALL, {"num_workers": 64, "cpus_per_worker": 1.0, "reader_cpus": 0.25}, "num_workers = 64: .*at most 3"),
        # The CPUs are there, but on no node together.
        (TWO_SMALL, {"num_workers": 1, "cpus_per_worker": 4.0}, "reserves 4 CPUs of one node.*at most 0"),
        (TWO_SMALL, {"num_workers": 1, "cpus_per_worker": 1.0, "use_gpu": True}, "the cluster has no GPU"),
        (TWO_SMALL, {"num_workers": 0, "cpus_per_worker": 1.0, "use_gpu": True}, "the cluster has no GPU"),
        (
            ONE_GPU,
            {"num_workers": 2, "cpus_per_worker": 1.0, "use_gpu": True},
            "num_workers = 2: .*1 GPUs; .*at most 1",
        ),
    ],
)
def test_what_can_never_be_placed_is_refused_with_the_most_that_can(
    there: list[dict[str, Any]], arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: there)
    with pytest.raises(UserError, match=message):
        cluster.require(**{"use_gpu": False, **arguments})


def test_a_cluster_that_does_not_answer_names_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise ConnectionError("refused")

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="RAY_ADDRESS = 127.0.0.1:1: no cluster answers there"):
        cluster.connect()
