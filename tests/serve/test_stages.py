import numpy as np

from raycap.data.images import decode_image, resize_image
from raycap.hardware import Precision
from raycap.models.blip import Decoding
from raycap.rerank import Rerank
from raycap.serve.config import BatchedStageOptions
from raycap.serve.stages import Decoder, Encoder


def test_what_travels_is_the_same_in_a_batch_and_so_are_the_captions_that_a_clip_chose(
    models, tiny_clip, files, predicted
):
    model, options = str(models / "demo/blip/model"), BatchedStageOptions(batch_size=1)
    decoding = Decoding(num_beams=3, max_new_tokens=8)
    rerank = Rerank(num_candidates=3, clip_weight=100, clip=tiny_clip)
    encoded = Encoder(model, None, tiny_clip, Precision.FP32, options).encode_batch(
        [resize_image(decode_image(file), 32) for file in files]
    )
    assert all(of_image.image_embeds.dtype == np.float16 for of_image in encoded)
    assert all(of_image.image_features.shape == (8,) for of_image in encoded)
    captions = Decoder(model, decoding, rerank, Precision.FP32, options).decode_batch(encoded)
    assert captions == predicted(None, decoding, rerank)
    assert captions != predicted(None, decoding), "the CLIP must matter for this to show anything"
