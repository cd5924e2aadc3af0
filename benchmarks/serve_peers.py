"""Other servers of the same model, for benchmarks/serve.py: ``python benchmarks/serve_peers.py KIND MODEL RBM PORT``.

    litserve               LitServe around raycap's own predictor, batches of 8
    fastapi_transformers   FastAPI around transformers' BlipForConditionalGeneration, as one writes it in an hour: one
                           image at a time, without the RBM

POST /caption takes an image file as its body; LitServe hands on parsed bodies only: JSON with base64. Needs
`pip install litserve`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import sys
from typing import Any

import litserve
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image
from transformers import AutoTokenizer, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from raycap.data.images import decode_image
from raycap.hardware import Precision, default_device
from raycap.predictor import CaptionPredictor


class Captioner(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's side of it; its worker is another process, which loads the models."""

    def __init__(self, model: str, rbm: str) -> None:
        super().__init__(max_batch_size=8, batch_timeout=0.005, api_path="/caption")
        self.paths = model, rbm

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.predictor = CaptionPredictor.from_pretrained(*self.paths, Precision.AUTO)

    def decode_request(self, request: dict[str, str]) -> bytes:
        return base64.b64decode(request["image"])

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, files: list[bytes]) -> list[str]:
        return self.predictor.caption([decode_image(file) for file in files])

    def unbatch(self, output: list[str]) -> list[str]:
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        return {"caption": output}


def serve_litserve(model: str, rbm: str, port: int) -> None:
    server = litserve.LitServer(Captioner(model, rbm), accelerator="cpu", workers_per_device=1, timeout=600)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


def serve_fastapi(model: str, port: int) -> None:
    dtype = Precision.AUTO.dtype(default_device())
    blip = BlipForConditionalGeneration.from_pretrained(model, dtype=dtype).eval()
    processor, tokenizer = BlipImageProcessorPil.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    api, one_at_a_time = FastAPI(), asyncio.Lock()

    @torch.inference_mode()
    def caption(data: bytes) -> str:
        image: Any = Image.open(io.BytesIO(data)).convert("RGB")
        pixel_values = processor(images=image, return_tensors="pt").pixel_values.to(dtype)
        text: str = tokenizer.decode(blip.generate(pixel_values, max_new_tokens=20)[0], skip_special_tokens=True)
        return text

    @api.post("/caption")
    async def answer(request: Request) -> dict[str, str]:
        data = await request.body()
        async with one_at_a_time:
            return {"caption": await asyncio.to_thread(caption, data)}

    @api.get("/health")
    async def health() -> Response:
        return Response()

    uvicorn.run(api, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    kind, model_path, rbm_path, port_number = sys.argv[1:]
    if kind == "litserve":
        serve_litserve(model_path, rbm_path, int(port_number))
    else:
        serve_fastapi(model_path, int(port_number))
