"""Configuration: every error of a file at once, with field, value and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from raycap.config import Config, load_config
from raycap.errors import UserError

CONFIGS = Path(__file__).parents[1] / "jobs" / "configs"


class Circle(Config):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Config):
    kind: Literal["square"] = "square"
    edge: float = Field(default=1.0, gt=0)


class Drawing(Config):
    output: str
    shape: Annotated[Circle | Square, Field(discriminator="kind")] = Circle()
    shapes: tuple[Square, ...] = ()
    scale: Circle | None = None


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_overrides_replace_nested_values_and_list_items(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "output: x\nshape: {kind: square, edge: 2}\nshapes: [{edge: 1}, {edge: 2}]\n")
    config = load_config(Drawing, file, ["shape.edge=3", "shapes.1.edge=5", "output=s3://bucket/a=b", "scale.radius=4"])
    assert config == Drawing(
        output="s3://bucket/a=b", shape=Square(edge=3), shapes=(Square(edge=1), Square(edge=5)), scale=Circle(radius=4)
    )


def test_all_errors_are_reported_together_each_with_field_value_and_remedy(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "shape: {kind: square, edgy: 2, edge: -1}\nshapes: [{edge: many}]\nspeed: 3\n")
    with pytest.raises(UserError) as caught:
        load_config(Drawing, file)
    lines = [line.removeprefix(f"{file}: ") for line in str(caught.value).splitlines()]
    assert sorted(lines) == [
        "output: missing; give it a value",
        "shape.edge = -1: Input should be greater than 0",
        "shape.edgy = 2: unknown key; did you mean edge?",
        "shapes.0.edge = 'many': Input should be a valid number, unable to parse string as a number",
        "speed = 3: unknown key; known keys: output, scale, shape, shapes",
    ]


def test_a_wrong_kind_names_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shape.*'oval'.*'circle', 'square'"):
        load_config(Drawing, write(tmp_path / "a.yaml", "output: x\nshape: {kind: oval}\n"))


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("output: [", [], "is not YAML"),
        ("- a", [], "holds a list"),
        ("output: x", ["shape"], "write a.b=value"),
        ("output: x", ["output.a=1"], "has no keys below it"),
        ("output: x\nshapes: []", ["shapes.0.edge=1"], "is no index of a list of 0"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(Drawing, write(tmp_path / "a.yaml", text), overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--config: no such file: .*none.yaml"):
        load_config(Drawing, str(tmp_path / "none.yaml"))


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Drawing(output="x").output = "y"  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_shipped_config_is_valid(path: Path) -> None:
    from raycap.batch.caption import CaptionConfig
    from raycap.batch.evaluate import EvaluateConfig
    from raycap.batch.extract import ExtractConfig
    from raycap.batch.ingest import IngestConfig
    from raycap.batch.likelihood import LikelihoodConfig
    from raycap.batch.refiners import RefinersConfig
    from raycap.sweep.config import SweepConfig
    from raycap.train.config import TrainConfig

    classes = {
        "ingest": IngestConfig,
        "extract": ExtractConfig,
        "train": TrainConfig,
        "evaluate": EvaluateConfig,
        "refiners": RefinersConfig,
        "likelihood": LikelihoodConfig,
        "caption": CaptionConfig,
        "sweep": SweepConfig,
    }
    job = path.stem.split("_")[0]
    if job in classes:
        load_config(classes[job], str(path))
    else:
        assert job == "demo"
