"""The command line that every job shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raycap.errors import UserError
from raycap.job import JobConfig, run_job


class Settings(JobConfig):
    speed: int = 1
    """How fast."""


def work(config: Settings) -> dict[str, object]:
    """Does the work."""
    if config.speed > 9:
        raise UserError(f"speed = {config.speed}: too fast; set at most 9")
    return {"speed": config.speed, "name": "é"}


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.yaml"
    path.write_text(f"output: {tmp_path / 'out'}\n")
    return str(path)


def test_the_result_is_written_and_is_the_last_line(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(Settings, work, ["--config", file, "speed=3"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == json.loads((tmp_path / "out" / "metrics.json").read_text()) == {"speed": 3, "name": "é"}


def test_overrides_may_stand_before_the_config(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(Settings, work, ["speed=2", "--config", file])
    assert json.loads(capsys.readouterr().out)["speed"] == 2


@pytest.mark.parametrize(
    ("override", "line"),
    [("speed=12", "error: speed = 12: too fast; set at most 9"), ("sped=1", "unknown key; did you mean speed?")],
)
def test_a_user_s_error_is_one_line_and_exit_code_2(
    file: str, override: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_job(Settings, work, ["--config", file, override])
    output = capsys.readouterr()
    assert exit_.value.code == 2
    assert output.out == ""
    assert line in output.err
    assert len(output.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_job(Settings, work, ["--help"])
    assert "speed: How fast. (default: 1)" in capsys.readouterr().out
