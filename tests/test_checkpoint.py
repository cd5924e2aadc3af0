"""Model directories: what was saved comes back, anything else is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import BlipConfig, BlipForConditionalGeneration, ResNetConfig, ResNetForImageClassification

from raycap.checkpoint import pretrained_config
from raycap.checkpoint.captioner_shape import read_captioner_shape
from raycap.checkpoint.directory import publish
from raycap.checkpoint.identity import EncoderId, encoder_fingerprint
from raycap.checkpoint.lstm_captioner import CaptioningLstm, load_lstm_captioner, save_lstm_captioner
from raycap.checkpoint.pretrained import load_blip, load_clip, load_resnet, save_blip
from raycap.checkpoint.refiner import load_refiner, save_refiner
from raycap.data.vocabulary import make_vocabulary
from raycap.errors import UserError
from raycap.models.lstm_captioner import LstmCaptioner
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.models.resnet_regions import ResNetRegions, ResNetShape

ENCODER = EncoderId("some/blip", "0123456789abcdef")


def test_a_saved_blip_comes_back_and_transformers_reads_it_too(tiny_blip: str, tmp_path: Path) -> None:
    encoder, decoder = load_blip(tiny_blip)
    save_blip(tmp_path / "again", encoder, decoder)
    again, _ = load_blip(str(tmp_path / "again"))
    assert encoder_fingerprint(again) == encoder_fingerprint(encoder)
    whole = BlipForConditionalGeneration.from_pretrained(tmp_path / "again")
    for name, tensor in whole.text_decoder.state_dict().items():
        assert torch.equal(tensor, decoder.text_decoder.state_dict()[name]), name


@pytest.mark.parametrize("learn_variance", [False, True])
def test_a_saved_refiner_comes_back_bit_for_bit(learn_variance: bool, tmp_path: Path) -> None:
    rbm = GaussianBernoulliRBM(6, 4, sigma=0.2, learn_variance=learn_variance, sigma_bounds=(0.1, 0.5))
    refiner = RbmRefiner(rbm, torch.randn(6), torch.rand(6) + 0.5)
    save_refiner(tmp_path / "rbm", refiner, ENCODER)
    again = load_refiner(str(tmp_path / "rbm"), ENCODER)
    embeds = torch.randn(2, 3, 6)
    assert torch.equal(again(embeds, gate=0.7, passes=2), refiner(embeds, gate=0.7, passes=2))
    assert again.rbm.sigma_bounds == (0.1, 0.5)


def test_a_saved_lstm_captioner_comes_back_bit_for_bit(tmp_path: Path) -> None:
    shape = ResNetShape(embedding_size=4, hidden_sizes=(8,), depths=(1,), layer_type="basic")
    encoder = ResNetRegions(shape.build(), 32, grid=2, image_mean=(0.5, 0.4, 0.3))
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    encoder.train()(images)  # running statistics are part of the model
    vocabulary = make_vocabulary({"a": 3, "dog": 2})
    decoder = LstmCaptioner(len(vocabulary), 6, 5, 8, attention_dim=4, gated=True, dropout=0.1).eval()
    save_lstm_captioner(tmp_path / "lstm", CaptioningLstm(encoder.eval(), decoder, vocabulary))
    again = load_lstm_captioner(str(tmp_path / "lstm"))
    input_ids = torch.tensor([[1, 4, 5], [1, 5, 2]])
    expected, found = decoder(encoder(images), input_ids), again.decoder(again.encoder(images), input_ids)
    assert torch.equal(found.logits, expected.logits)
    assert encoder_fingerprint(again.encoder) == encoder_fingerprint(encoder)
    assert again.vocabulary.get_vocab() == vocabulary.get_vocab()


def test_a_resnet_is_taken_out_of_a_classifier(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3)
    classifier = ResNetForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    found = load_resnet(str(tmp_path)).state_dict()
    assert found.keys() == classifier.resnet.state_dict().keys()
    for name, tensor in classifier.resnet.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_an_rbm_of_another_encoder_is_refused_naming_both(tiny_rbm: str) -> None:
    with pytest.raises(UserError, match=f"rbm = {tiny_rbm}: trained on .* not of some/blip .0123456789abcdef."):
        load_refiner(tiny_rbm, ENCODER)


def test_an_unfinished_directory_is_refused(tiny_blip: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_blip, tmp_path / "blip")
    (tmp_path / "blip" / "config.json").unlink()
    with pytest.raises(UserError, match="no model there .config.json is missing"):
        load_blip(str(tmp_path / "blip"))


def test_models_of_another_kind_are_refused(tiny_blip: str, tiny_rbm: str) -> None:
    with pytest.raises(UserError, match="holds a gaussian_bernoulli_rbm, not a BLIP"):
        load_blip(tiny_rbm)
    with pytest.raises(UserError, match="holds a blip, not an RBM"):
        load_refiner(tiny_blip)
    with pytest.raises(UserError, match="holds a blip, not an LSTM captioner"):
        load_lstm_captioner(tiny_blip)
    with pytest.raises(UserError, match="encoder = .*: holds a blip, not a ResNet"):
        load_resnet(tiny_blip)


def test_a_path_that_is_none_is_told_from_a_hub_name() -> None:
    with pytest.raises(UserError, match="model = ./nothing: no such directory"):
        load_blip("./nothing")


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "no model there .config.json is missing"),
        ("model.safetensors", "not whole .*model.safetensors.*; save model and processor there"),
        ("processor_config.json", "not whole .*image processor.*; save model and processor there"),
        ("tokenizer*", "its tokenizer has . tokens, its model 514; save the model's own CLIPProcessor beside it"),
    ],
)
def test_a_clip_of_which_a_file_is_missing_is_refused_in_one_line(
    removed: str, message: str, tiny_clip: str, tmp_path: Path
) -> None:
    shutil.copytree(tiny_clip, tmp_path / "clip")
    load_clip(str(tmp_path / "clip"))
    for path in (tmp_path / "clip").glob(removed):
        path.unlink()
    with pytest.raises(UserError, match=f"a.clip = .*clip: {message}") as caught:
        load_clip(str(tmp_path / "clip"), "a.clip")
    assert "\n" not in str(caught.value)


def test_what_is_no_clip_is_refused(tiny_blip: str, tiny_clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="clip = ./nothing: no such directory; give a CLIP directory, s3:// prefix or"):
        load_clip("./nothing")
    with pytest.raises(UserError, match="clip = .*: holds a blip, not a CLIP; give a CLIP model directory"):
        load_clip(tiny_blip)
    with pytest.raises(UserError, match="model = .*: holds a clip, not a BLIP; give a BLIP model directory"):
        load_blip(tiny_clip)
    monkeypatch.setattr(pretrained_config, "hf_hub_download", lambda source, file: f"{tiny_blip}/{file}")
    with pytest.raises(UserError, match="clip = some/blip: holds a blip, not a CLIP"):
        load_clip("some/blip")


def test_a_blip_s_shape_is_known_where_its_configuration_leaves_sizes_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip", "vision_config": {"image_size": 224}}')
    shape, defaults = read_captioner_shape(str(tmp_path)), BlipConfig().vision_config
    assert shape == ("blip", 224, (224 // defaults.patch_size) ** 2 + 1, defaults.hidden_size)
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    assert read_captioner_shape(str(tmp_path)).image_size == defaults.image_size


def test_a_hub_name_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="model = nobody/nothing: no such directory, and the hub") as caught:
        load_blip("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_fingerprint_knows_weights_and_preprocessing(tiny_blip: str) -> None:
    encoder, _ = load_blip(tiny_blip)
    before = encoder_fingerprint(encoder)
    encoder.image_mean = (0.0, 0.0, 0.0)
    assert encoder_fingerprint(encoder) != before
    encoder, _ = load_blip(tiny_blip)
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert encoder_fingerprint(encoder) != before


def test_publishing_replaces_a_model_as_a_whole(tiny_blip: str, tiny_rbm: str, tmp_path: Path) -> None:
    target = str(tmp_path / "model")
    publish(Path(tiny_blip), target)
    publish(Path(tiny_rbm), target)
    assert sorted(path.name for path in Path(target).iterdir()) == ["config.json", "model.safetensors"]
