"""The README's section on serving, its commands and its Python run as they stand there."""

import json
import logging
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import hostile_images
import httpx
import pytest
from serve.loopback import serve_on_loopback

from raycap.serve.stages.weights import Routing

README = Path(__file__).parents[2] / "README.md"
README_URL = "http://127.0.0.1:8000"

with_curl = pytest.mark.skipif(
    None in (shutil.which("curl"), shutil.which("base64"), shutil.which("bash")), reason="no curl, base64 or bash"
)


def blocks():
    """The indented blocks of the section."""
    section = README.read_text().split("\n### Serving\n")[1].split("\n### ")[0]
    return [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+(?:\n?(?:^    .*\n)+)*", section, re.M)]


def commands():
    """Those with curl in them, joined where a backslash or an open quote carries on."""
    lines = "".join(block for block in blocks() if "curl " in block)
    return re.findall(r"^(?:curl|echo) .*(?:\n(?:    ).*)*", lines, re.M)


@pytest.fixture(scope="module")
def url(models):
    model = {"model": str(models / "demo/blip/model"), "rbm": str(models / "demo/rbm/model"), "precision": "fp32"}
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    with serve_on_loopback(Routing.model_validate({"models": {"caption": model}})) as url:
        yield url


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """As photo.jpg in the current directory; its plain caption is what gate 0 must give."""
    (tmp_path / "photo.jpg").write_bytes(hostile_images.good("JPEG", (640, 480)))
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "photo.jpg").read_bytes()


def run(command, url):
    command = command.replace("curl ", "curl --silent --show-error --fail-with-body --max-time 60 ", 1)
    finished = subprocess.run(
        ["bash", "-c", command.replace(README_URL, url)], capture_output=True, text=True, timeout=90
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout


@with_curl
def test_every_command_of_the_readme_is_answered(url, photo):
    answers = {}
    for command in commands():
        (path,) = re.findall(f"{README_URL}/v1/([a-z/]+)", command)
        answers.setdefault(path, []).append(run(command, url))

    def ask(**options):
        return httpx.post(f"{url}/v1/caption", files={"file": photo}, data=options, timeout=60).json()["caption"]

    form, raw, in_json, streamed = answers.pop("caption")
    assert json.loads(form)["caption"] == ask(num_beams="3")
    assert json.loads(raw)["caption"] == ask(gate="0.5")
    assert json.loads(in_json)["caption"] == ask(gate="0")
    *pieces, whole, done = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert "".join(json.loads(piece)["delta"] for piece in pieces) == json.loads(whole)["caption"] == ask()
    assert done == "[DONE]"
    assert [result["caption"] for result in json.loads(answers.pop("captions")[0])["results"]] == [ask()] * 2
    chat = json.loads(answers.pop("chat/completions")[0])
    assert chat["choices"][0]["message"]["content"] == ask()
    (entry,) = json.loads(answers.pop("embeddings")[0])["data"]
    assert (len(entry["embedding"]), entry["stage"]) == (32, "refiner")
    assert [model["id"] for model in json.loads(answers.pop("models")[0])["data"]] == ["caption"]
    assert not answers, "a command of the README that this does not look at"


@with_curl
def test_a_refusal_reaches_curl_before_all_of_a_large_file_is_sent(url, photo, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(bytes(200 * 1024**2))
    command = f"curl --silent -H 'Content-Type: image/jpeg' --data-binary @photo.jpg {url}/v1/caption"
    answer = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60).stdout
    assert json.loads(answer)["error"]["type"] == "image_too_large"


def test_the_python_of_the_readme_prints_the_caption(url, photo, capsys):
    (code,) = [block for block in blocks() if "import openai" in block]
    exec(compile(code.replace(README_URL, url), str(README), "exec"), {})
    caption = httpx.post(f"{url}/v1/caption", files={"file": photo}, timeout=60).json()["caption"]
    assert capsys.readouterr().out == f"{caption}\n"
