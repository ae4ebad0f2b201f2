"""A generator in this process: a transformers model, such as Qwen3-VL, by its ordinary API."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import ConfigurationError
from dopd_vl.common.resources import find_model
from privileged.annotators.requests import Reply, Request, RequestRefused
from privileged.model_settings import ModelConfig


class LocalGenerator:
    """Loads the model at the first request and answers one request at a time."""

    concurrency = 1

    def __init__(self, settings: ModelConfig):
        self._settings = settings
        self._loaded: tuple[Any, Any, bool] | None = None

    def identity(self) -> dict[str, Any]:
        model = model_identity(str(self._settings.model))
        return {"kind": "local", "model": model, "dtype": self._settings.dtype, **self._settings.sampling.identity()}

    async def generate(self, request: Request) -> Reply:
        return await asyncio.to_thread(self._generate, request)

    def _generate(self, request: Request) -> Reply:
        import torch

        if self._loaded is None:
            self._loaded = load_model(self._settings)
        processor, model, takes_images = self._loaded
        if request.images and not takes_images:
            raise RequestRefused(f"the model {self._settings.model} takes no images")
        messages = _messages(request, takes_images)
        inputs = processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **self._settings.sampling.extra,
        ).to(model.device)
        sampling = self._settings.sampling
        choice: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        prompt_tokens = inputs["input_ids"].shape[1]
        torch.manual_seed(request.seed)
        with torch.inference_mode():
            output = model.generate(**inputs, **choice, max_new_tokens=sampling.max_tokens)
        new = output[0, prompt_tokens:]
        tokenizer = getattr(processor, "tokenizer", processor)
        ends = model.generation_config.eos_token_id
        ended = len(new) > 0 and int(new[-1]) in (ends if isinstance(ends, list) else [ends])
        cut_off = len(new) >= sampling.max_tokens and not ended
        problem = f"the reply was cut off at {sampling.max_tokens} tokens" if cut_off else None
        return Reply(tokenizer.decode(new, skip_special_tokens=True), prompt_tokens, len(new), problem)

    async def close(self) -> None:
        self._loaded = None


def model_identity(name: str) -> str:
    """The name, and for a folder a digest of its files' names, sizes and small files: another model is asked anew.

    Weights are known by their size and their first and last megabyte: reading all of them would take minutes.
    """
    folder = Path(find_model(name))
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(2**20))
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return f"{folder.name}:{digest.hexdigest()[:16]}"


def load_model(settings: ModelConfig) -> tuple[Any, Any, bool]:
    """The processor or tokenizer, the model, and whether it takes images; ConfigurationError names what cannot be."""
    import transformers

    name = find_model(str(settings.model))
    kinds: tuple[Any, Any] = (transformers.AutoTokenizer, transformers.AutoModelForCausalLM)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        takes_images = type(config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if takes_images:
            kinds = (transformers.AutoProcessor, transformers.AutoModelForImageTextToText)
        processor = kinds[0].from_pretrained(name)
        model = kinds[1].from_pretrained(name, dtype=settings.dtype, use_safetensors=True)
        return processor, model.to(settings.device).eval(), takes_images
    except Exception as error:  # no such model, dtype or device, out of memory, or whatever a damaged file leads to
        raise ConfigurationError(
            f"{settings.KEY}.model: {name} cannot be loaded ({' '.join(str(error).split())})"
        ) from error


def _messages(request: Request, takes_images: bool) -> list[dict[str, Any]]:
    if not takes_images:
        return [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
    content = request.content(lambda stored: {"type": "image", "image": stored.image.convert("RGB")})
    system = [{"type": "text", "text": request.system}]
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]
