"""Re-ranking: weights of 0 take the most probable candidate, an RBM or a CLIP can turn the choice, a wrong one is
refused."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from tiny import png
from transformers import CLIPModel, CLIPProcessor

from raycap.checkpoint.identity import EncoderId, pair_id
from raycap.checkpoint.pretrained import load_blip
from raycap.checkpoint.refiner import save_refiner
from raycap.errors import UserError
from raycap.models.clip import ClipImageEncoder, ClipTextEncoder
from raycap.models.decoding import Decoding
from raycap.models.joint import score_captions
from raycap.models.rbm import GaussianBernoulliRBM
from raycap.models.refiner import RbmRefiner
from raycap.predictor import CaptionPredictor
from raycap.rerank import Rerank
from raycap.reranker import Candidate, Reranker

BEAM = Decoding(max_new_tokens=8, num_beams=4)
DRAWS = Decoding(max_new_tokens=3, do_sample=True, temperature=0.3, seed=3)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [Image.open(io.BytesIO(png(seed))) for seed in range(6)]


@pytest.fixture(scope="module")
def plain(tiny_blip: str) -> CaptionPredictor:
    return CaptionPredictor.from_pretrained(tiny_blip)


@pytest.fixture(scope="module")
def image_embeds(plain: CaptionPredictor, images: list[Image.Image]) -> torch.Tensor:
    return plain.encode(plain.preprocess(images))


def save_rbm(directory: Path, tiny_blip: str, favourite: torch.Tensor, sigma: float = 0.1) -> str:
    """An RBM whose free energy is the distance to one joint embedding: |v - favourite|^2 / (2 sigma^2), and log 2."""
    rbm = GaussianBernoulliRBM(len(favourite), 1, sigma=sigma)
    with torch.no_grad():
        rbm.weight.zero_()
        rbm.visible_bias.copy_(favourite)
    refiner = RbmRefiner(rbm, torch.zeros(len(favourite)), torch.ones(len(favourite)))
    save_refiner(directory, refiner, pair_id(tiny_blip, *load_blip(tiny_blip)))
    return str(directory)


def test_the_beams_best_is_the_highest_mean_log_probability(tiny_blip: str, images: list[Image.Image]) -> None:
    rerank = Rerank(num_candidates=4, length_normalised=True)
    reranked = CaptionPredictor.from_pretrained(tiny_blip, rerank=rerank).caption(images, BEAM)
    assert reranked == CaptionPredictor.from_pretrained(tiny_blip).caption(images, BEAM)
    assert len(set(reranked)) > 1


@pytest.mark.parametrize("normalised", [False, True])
def test_without_an_rbm_the_most_probable_candidate_is_chosen(
    plain: CaptionPredictor, image_embeds: torch.Tensor, normalised: bool
) -> None:
    reranker = Reranker(Rerank(num_candidates=4, length_normalised=normalised))
    proposed = reranker.propose(plain.decoder.decoder, image_embeds, BEAM)
    chosen = plain.decoder(image_embeds, BEAM, reranker)
    for candidates, caption in zip(proposed, chosen, strict=True):
        assert caption == max(candidates, key=lambda candidate: candidate.log_probability).caption
        assert len(candidates) > 1


@pytest.mark.parametrize("decoding", [BEAM, DRAWS], ids=["beam", "draws"])
def test_candidates_are_distinct_texts_and_the_more_probable_come_first(
    plain: CaptionPredictor, image_embeds: torch.Tensor, decoding: Decoding
) -> None:
    proposed = Reranker(Rerank(num_candidates=4)).propose(plain.decoder.decoder, image_embeds, decoding)
    assert len(proposed) == 6
    for candidates in proposed:
        texts = [candidate.caption for candidate in candidates]
        assert len(set(texts)) == len(texts) <= 4
        figures = [candidate.log_probability for candidate in candidates]
        assert figures == sorted(figures, reverse=True)
        assert not any(token in text for text in texts for token in ("[SEP]", "[PAD]", "[DEC]"))
    if decoding.do_sample:
        assert min(map(len, proposed)) < 4, "draws that never repeat prove nothing"


def test_an_rbm_that_prefers_a_candidate_turns_the_choice_to_it(
    tiny_blip: str, plain: CaptionPredictor, image_embeds: torch.Tensor, tmp_path: Path
) -> None:
    decoder, image = plain.decoder, image_embeds[:1]
    token_ids = decoder.decoder.propose(image, BEAM, 4)
    joint = score_captions(decoder.decoder, image, token_ids).joint_embeds[0]
    texts = decoder.decoder.tokenizer.batch_decode(token_ids[0, :, 1:], skip_special_tokens=True)
    assert len(set(texts)) == 4
    for favourite, text in zip(joint, texts, strict=True):
        rbm = save_rbm(tmp_path / "rbm", tiny_blip, favourite)
        settings = Rerank(num_candidates=4, free_energy_weight=1e4, rbm=rbm)
        assert decoder(image, BEAM, Reranker(settings)) == [text]
        ignored = Reranker(settings.model_copy(update={"free_energy_weight": 0.0}))
        assert decoder(image, BEAM, ignored) == decoder(image, BEAM, Reranker(Rerank(num_candidates=4)))


def test_of_equals_the_more_probable_is_chosen(plain: CaptionPredictor, image_embeds: torch.Tensor) -> None:
    chosen = plain.decoder(image_embeds, BEAM, Reranker(Rerank(num_candidates=4, log_probability_weight=0)))
    assert chosen == plain.decoder(image_embeds, BEAM, Reranker(Rerank(num_candidates=4)))


def test_a_choice_does_not_depend_on_its_batch(
    tiny_blip: str, plain: CaptionPredictor, image_embeds: torch.Tensor, tmp_path: Path
) -> None:
    rbm = save_rbm(tmp_path / "rbm", tiny_blip, torch.linspace(-1, 1, 32), sigma=1.0)
    reranker = Reranker(Rerank(num_candidates=4, free_energy_weight=0.5, rbm=rbm))
    together = plain.decoder(image_embeds, BEAM, reranker)
    assert [plain.decoder(image[None], BEAM, reranker)[0] for image in image_embeds] == together
    assert together != plain.decoder(image_embeds, BEAM, Reranker(Rerank(num_candidates=4)))


@pytest.fixture(scope="module")
def with_clip(tiny_blip: str, tiny_clip: str) -> CaptionPredictor:
    return CaptionPredictor.from_pretrained(tiny_blip, rerank=Rerank(num_candidates=4, clip=tiny_clip, clip_weight=9))


def propose(predictor: CaptionPredictor, images: list[Image.Image]) -> list[list[Candidate]]:
    assert predictor.reranker is not None
    pixels = predictor.preprocess(images)
    decoder = predictor.decoder.decoder
    return predictor.reranker.propose(decoder, predictor.encode(pixels), BEAM, predictor.describe(pixels))


def test_a_clip_score_is_the_cosine_that_transformers_finds(
    with_clip: CaptionPredictor, tiny_clip: str, images: list[Image.Image]
) -> None:
    model, processor = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPProcessor.from_pretrained(tiny_clip)
    seen, scores = with_clip.preprocess(images), []
    for pixels, candidates in zip(seen, propose(with_clip, images), strict=True):
        texts = [candidate.caption for candidate in candidates]
        inputs = processor(text=texts, images=Image.fromarray(pixels), padding=True, return_tensors="pt")
        with torch.inference_mode():
            cosines = model(**inputs).logits_per_image[0] / model.logit_scale.exp()
        assert [candidate.clip_score for candidate in candidates] == pytest.approx(cosines.tolist(), abs=1e-5)
        scores += cosines.tolist()
    assert max(scores) - min(scores) > 0.2, "scores that are all alike prove nothing"


def test_the_weight_at_which_two_candidates_tie_is_where_a_clip_turns_the_choice(
    with_clip: CaptionPredictor, tiny_clip: str, images: list[Image.Image]
) -> None:
    pixels = with_clip.preprocess(images)
    image_embeds, image_features = with_clip.encode(pixels), with_clip.describe(pixels)
    turned = 0
    for index, candidates in enumerate(propose(with_clip, images)):
        first, second = candidates[:2]
        tie = (first.log_probability - second.log_probability) / (second.clip_score - first.clip_score)
        chosen = []
        for weight in (0.99 * tie, 1.01 * tie):
            reranker = Reranker(Rerank(num_candidates=2, clip=tiny_clip, clip_weight=weight))
            one = slice(index, index + 1)
            chosen += with_clip.decoder(image_embeds[one], BEAM, reranker, image_features[one])
        turned += chosen == [first.caption, second.caption]
    assert turned == len(images)


def test_batch_mates_change_no_clip_score(with_clip: CaptionPredictor, images: list[Image.Image]) -> None:
    together = propose(with_clip, images)
    for image, candidates in zip(images, together, strict=True):
        (alone,) = propose(with_clip, [image])
        assert [candidate.caption for candidate in alone] == [candidate.caption for candidate in candidates]
        scores = [candidate.clip_score for candidate in candidates]
        assert [candidate.clip_score for candidate in alone] == pytest.approx(scores, abs=1e-5)
    assert [with_clip.caption([image], BEAM)[0] for image in images] == with_clip.caption(images, BEAM)


def test_a_clip_reads_each_image_once_and_all_candidates_at_once(
    with_clip: CaptionPredictor, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[type, int]] = []
    for kind in (ClipImageEncoder, ClipTextEncoder):

        def forward(self, batch, kind=kind, original=kind.forward):  # type: ignore[no-untyped-def]
            read.append((kind, len(batch)))
            return original(self, batch)

        monkeypatch.setattr(kind, "forward", forward)
    with_clip.caption(images, BEAM)
    assert read == [(ClipImageEncoder, 6), (ClipTextEncoder, 6 * 4)]


def test_a_clip_that_is_not_there_is_refused_in_one_line(tiny_blip: str, tiny_rbm: str) -> None:
    for clip, message in (("./nothing", "no such directory; give a CLIP"), (tiny_rbm, "holds a gaussian_bernoulli")):
        with pytest.raises(UserError, match=f"rerank.clip = {clip}: {message}") as caught:
            CaptionPredictor.from_pretrained(tiny_blip, rerank=Rerank(clip_weight=1, clip=clip))
        assert "\n" not in str(caught.value)


def test_an_rbm_of_the_wrong_kind_is_refused_in_one_line_either_way(
    tiny_blip: str, tiny_rbm: str, tmp_path: Path
) -> None:
    rbm = save_rbm(tmp_path / "rbm", tiny_blip, torch.zeros(32))
    with pytest.raises(UserError, match="rerank.rbm = .*: trained on embeddings of .*, not of .*image and caption"):
        CaptionPredictor.from_pretrained(tiny_blip, rerank=Rerank(free_energy_weight=1, rbm=tiny_rbm))
    with pytest.raises(UserError, match="rbm = .*: trained on embeddings of .*image and caption.*, not of") as caught:
        CaptionPredictor.from_pretrained(tiny_blip, rbm)
    assert "\n" not in str(caught.value)


def test_the_pair_s_id_knows_both_halves_and_the_vocabulary(tiny_blip: str) -> None:
    encoder, decoder = load_blip(tiny_blip)
    assert pair_id("a", encoder, decoder) == pair_id("a", *load_blip(tiny_blip))
    seen = {pair_id("a", encoder, decoder).fingerprint}
    encoder.image_mean = (0.0, 0.0, 0.0)
    seen.add(pair_id("a", encoder, decoder).fingerprint)
    with torch.no_grad():
        next(decoder.parameters()).view(-1)[0] += 1e-3
    seen.add(pair_id("a", encoder, decoder).fingerprint)
    decoder.tokenizer.add_tokens(["zebra"])
    seen.add(pair_id("a", encoder, decoder).fingerprint)
    assert len(seen) == 4
    assert isinstance(pair_id("a", encoder, decoder), EncoderId)


def test_what_does_not_fit_is_refused_with_its_remedy() -> None:
    with pytest.raises(ValidationError, match=r"free_energy_weight \(0.5\) needs an RBM; set rbm, or weigh it 0"):
        Rerank(free_energy_weight=0.5)
    with pytest.raises(ValidationError, match=r"clip_weight \(0.5\) needs a CLIP; set clip, or weigh it 0"):
        Rerank(clip_weight=0.5)
    with pytest.raises(UserError, match=r"decoding.num_beams = 4: gives no 5 candidates; set at least 5, or 1 with"):
        Rerank().require_candidates(BEAM)
    Rerank().require_candidates(DRAWS)
    with pytest.raises(UserError, match="decoding.prompt = 'a': the RBM that re-ranks was trained on captions without"):
        Rerank(num_candidates=1, rbm="somewhere").require_candidates(Decoding(prompt="a"))
