"""The command in a terminal: what it prints, draws and refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import png

from raycap.cli import main
from raycap.data.images import decode_image
from raycap.models.decoding import Decoding
from raycap.models.refinement import Refinement
from raycap.predictor import CaptionPredictor

# Short, as the tiny decoder has few positions.
SHORT = Decoding(max_new_tokens=6)
OPTIONS = ("--precision", "fp32", "--max-new-tokens", "6")


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Five images in two folders, two of them of one name."""
    paths = [tmp_path / "a" / f"{index}.png" for index in range(4)] + [tmp_path / "b" / "0.jpeg"]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(seed, 40 + 2 * seed))
    return list(map(str, paths))


@pytest.fixture(autouse=True, scope="module")
def quiet(tiny_blip: str) -> None:
    """What libraries say as they are first imported is not the command's."""
    CaptionPredictor.from_pretrained(tiny_blip)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["caption", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def read(images: list[str]) -> list[Image.Image]:
    return [decode_image(Path(path).read_bytes()) for path in images]


@pytest.mark.parametrize("kind", ["tiny_blip", "tiny_lstm"])
def test_each_image_s_line_is_the_predictor_s_caption_however_they_are_batched(
    kind: str, images: list[str], request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request.getfixturevalue(kind)
    written = CaptionPredictor.from_pretrained(model).write(read(images), Decoding(num_beams=3, max_new_tokens=6))
    expected = [f"{path}\t{captions[0].text}" for path, captions in zip(images, written, strict=True)]
    assert len({line.partition("\t")[2] for line in expected}) > 1, "the case shows nothing"
    options = ("--model", model, "--num-beams", "3", *OPTIONS)
    for batch_size in ("2", "16"):
        assert run(*images, *options, "--batch-size", batch_size) == 0
        printed = capsys.readouterr()
        assert printed.out.splitlines() == expected
        assert ("caption: started, 5 images" in printed.err) == (batch_size == "2")


def test_the_rbm_refines_as_the_predictor_does(
    tiny_blip: str, tiny_rbm: str, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    predictor = CaptionPredictor.from_pretrained(tiny_blip, tiny_rbm)
    expected = predictor.caption(read(images), SHORT, Refinement(gate=0.75, passes=2))
    assert expected != predictor.caption(read(images), SHORT, Refinement(gate=0)), "the case shows nothing"
    assert run(*images, "--model", tiny_blip, "--rbm", tiny_rbm, "--gate", "0.75", "--passes", "2", *OPTIONS) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == expected


def test_json_lines_have_every_caption_with_its_log_probability(
    tiny_lstm: str, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    written = CaptionPredictor.from_pretrained(tiny_lstm).write(
        read(images), Decoding(num_beams=3, max_new_tokens=6), num_captions=2
    )
    assert run(*images, "--model", tiny_lstm, "--num-beams", "3", "--num-captions", "2", "--json", *OPTIONS) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == images
    for line, captions in zip(lines, written, strict=True):
        assert [of["caption"] for of in line["captions"]] == [caption.text for caption in captions]
        assert [of["log_probability"] for of in line["captions"]] == pytest.approx([c[1] for c in captions], abs=1e-4)


def test_a_bad_image_is_named_in_a_line_the_others_are_captioned_and_the_exit_code_is_2(
    tiny_blip: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    bad = [str(tmp_path / name) for name in ("none.jpg", "text.jpg", "a")]
    assert run(bad[0], images[0], bad[1], bad[2], images[1], "--model", tiny_blip, *OPTIONS) == 2
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == images[:2]
    complaints = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert [complaint.split(": ")[1] for complaint in complaints] == bad
    for complaint, words in zip(complaints, ("no such file", "none of JPEG", "a folder; give files"), strict=True):
        assert words in complaint


@pytest.mark.parametrize("kind", ["tiny_blip", "tiny_lstm"])
def test_attention_is_drawn_into_the_file_or_into_one_for_each_image(
    kind: str, images: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = ("--model", request.getfixturevalue(kind), *OPTIONS)
    one = tmp_path / "one.png"
    assert run(images[3], *options, "--attention", str(one)) == 0
    (caption,) = CaptionPredictor.from_pretrained(options[1]).write(read(images[3:4]), SHORT, explain=True)[0]
    assert caption.attention is not None
    words = caption.attention.words
    num_tiles = 1 + len(words)
    assert num_tiles > 1, "the case shows nothing"
    figure = np.asarray(Image.open(one))
    assert figure.shape[1] == 192 * min(num_tiles, 6)
    assert run(*images, *options, "--attention", str(tmp_path / "out.png")) == 0
    assert {path.name for path in tmp_path.glob("out-*.png")} == {f"out-{n}.png" for n in ("0", "1", "2", "3", "0-2")}
    of_batch = np.asarray(Image.open(tmp_path / "out-3.png"))
    np.testing.assert_allclose(of_batch.astype(int), figure.astype(int), atol=2)  # a batch orders sums otherwise
    assert run(images[3], *options, "--attention", f"{tmp_path}/maps/") == 0
    assert (tmp_path / "maps" / "3.png").read_bytes() == one.read_bytes()


def test_what_is_wrong_with_the_options_is_told_in_one_line(
    tiny_blip: str, tiny_lstm: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (("--model", "/nowhere"), "model = /nowhere: no such directory"),
        (("--model", tiny_blip, "--gate", "0.5"), "--gate = 0.5: is of an RBM, and none is given; give --rbm"),
        (("--model", tiny_blip, "--rbm", tiny_blip), "rbm = .*: holds a blip, not an RBM"),
        (("--model", tiny_blip, "--num-beams", "0"), "num_beams = '0'"),
        (("--model", tiny_blip, "--num-beams", "3", "--do-sample"), "num_beams .3. must be 1 with do_sample"),
        (("--model", tiny_blip, "--num-captions", "2"), "--num-captions = 2: 1 beams .*; set --num-beams 2"),
        (("--model", tiny_blip, "--max-new-tokens", "99"), "max_new_tokens = 99: the decoder has 16 positions"),
        (("--model", tiny_blip, "--attention", "out.txt"), "--attention = out.txt: give a name that ends in .png"),
        (("--model", tiny_lstm, "--prompt", "a"), "prompt = 'a': an LSTM captioner continues no text"),
    ]
    for options, message in cases:
        assert run(images[0], *options) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        assert re.search(message, line), line


def test_the_command_runs_as_a_module_without_ray(tiny_blip: str, images: list[str]) -> None:
    code = "import sys; sys.modules['ray'] = None; import runpy; runpy.run_module('raycap', run_name='__main__')"
    command = [sys.executable, "-c", code, "caption", images[0], "--model", tiny_blip, *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{images[0]}\t")
    assert done.stderr == ""
