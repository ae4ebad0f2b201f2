"""Generators that are functions of the user's, named `module:function`: one that finds boxes, one that writes replies.

A detector takes a PIL image and the question. It gives supervision's Detections (with `data["class_name"]` for labels),
or a list of (label, [x1, y1, x2, y2]) in pixels. With rapidocr, for instance, in a file `text_boxes.py`:

    from rapidocr import RapidOCR

    reader = RapidOCR()

    def read(image, question):
        found = reader(numpy.asarray(image)[:, :, ::-1])          # it expects BGR
        if found.boxes is None:
            return []
        corners = [numpy.asarray(box) for box in found.boxes]     # four points each
        return [(text, [*box.min(0), *box.max(0)]) for text, box in zip(found.txts, corners)]

An annotator takes a system text, a user text, the PIL images that stand before it and a seed, and gives the reply:

    def write(system, user, images, seed):
        return my_client.complete(system, user, seed=seed)
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dopd_vl.common.errors import ConfigurationError
from privileged.annotators.requests import Reply, Request, RequestRefused


class FunctionGenerator:
    """Calls a function for one request at a time, always in the same thread. Its text is the reply."""

    concurrency = 1
    kind, key = "function", "model"

    def __init__(self, name: str):
        self._name, self._function = name, load_function(name, f"annotate.{self.key}")
        self._thread = ThreadPoolExecutor(1, self.kind)

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, self.key: function_identity(self._name, f"annotate.{self.key}")}

    async def generate(self, request: Request) -> Reply:
        text = await asyncio.get_running_loop().run_in_executor(self._thread, self._called, request)
        return Reply(text, 0, 0)

    def _called(self, request: Request) -> str:
        try:
            return self._reply(request)
        except Exception as error:  # the function is not ours: what it makes of one request may not end the run
            raise RequestRefused(f"{self._name} failed, {type(error).__name__}: {error}") from error

    def _reply(self, request: Request) -> str:
        images = [stored.image.convert("RGB") for stored in request.images]
        text = self._function(request.system, request.user, images, request.seed)
        if not isinstance(text, str):
            raise TypeError(f"it must give a text, not {type(text).__name__}")
        return text

    async def close(self) -> None:
        self._thread.shutdown(wait=True)


class DetectorGenerator(FunctionGenerator):
    """Calls a detector for one image at a time. A reply is a JSON list of boxes."""

    kind = key = "detector"

    def _reply(self, request: Request) -> str:
        return boxes_json(self._function(request.images[0].image.convert("RGB"), request.question))


def boxes_json(found: Any) -> str:
    """What a detector gave, as the JSON that `grounding.pixel_boxes` judges.

    >>> boxes_json([("STOP", (4, 5.5, 20, 30))])
    '[{"label": "STOP", "bbox": [4.0, 5.5, 20.0, 30.0]}]'
    """
    if hasattr(found, "xyxy"):
        names = found.data.get("class_name")
        if names is None:
            raise ValueError("the detections have no data['class_name']")
        found = [(str(name), bbox) for name, bbox in zip(names, found.xyxy, strict=True)]
    if not isinstance(found, Sequence):
        raise TypeError(f"it must give Detections or a list of (label, bbox), not {type(found).__name__}")
    return json.dumps([{"label": label, "bbox": [float(value) for value in bbox]} for label, bbox in found])


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The function that `module:function` names; modules in the current folder are found too.

    Raises:
        ConfigurationError: there is none; the message begins with the setting's key.
    """
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"{key}: {name} cannot be imported ({error})") from error
    if not callable(function):
        raise ConfigurationError(f"{key}: {name} is no function")
    return function


def function_identity(name: str, key: str) -> str:
    """The name and a digest of the function's file: a changed function is asked anew. Errors as of `load_function`."""
    file = inspect.getsourcefile(inspect.unwrap(load_function(name, key)))
    return f"{name}:{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ''}"
