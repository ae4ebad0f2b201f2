"""What one policy sees: an example and a variant of its privileged input, rendered into model inputs.

Every view ends in the same response tokens, copied by id: `collate` joins prompts and responses without tokenising
again.
To teach the toolkit a new model family, subclass `ViewProcessor` and implement `_encode`; docs/views.md adds one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from dopd_vl.common.errors import RecordError, UserError
from dopd_vl.views.messages import split_content
from privileged import VARIANTS
from privileged.records.fields import chat_message
from privileged.records.images import load_image
from privileged.rendering.render import append_to_last_user


class ViewError(UserError):
    """An example cannot be shown to a model; the message names the example and the reason."""


class Refusal(NamedTuple):
    """An example that could not be shown to a model and was passed over."""

    id: str
    reason: str


@dataclass(frozen=True)
class View:
    """One rendered prompt, on the CPU, not padded."""

    prompt_ids: list[int]
    images: list[Any] = field(default_factory=list)
    """PIL images as the model's image processor received them, in the order of the prompt"""
    mm_token_type_ids: list[int] | None = None
    """per prompt token: 0 text, 1 image"""
    pixel_values: Tensor | None = None
    """`[patches, channels * temporal * patch * patch]`"""
    image_grid_thw: Tensor | None = None
    """`[images, 3]`, patches along time, height and width"""

    def __deepcopy__(self, memo: dict[int, Any]) -> "View":
        # TRL copies prompts before it generates; a view never changes, and its pixels are many.
        return self


class Request(NamedTuple):
    """A view that is asked for."""

    example: Mapping[str, Any]
    """columns of a privileged dataset; a message's content may also be a list of text and image parts"""
    variant: str = "none"
    addition: str | None = None
    """text that comes after the last user message, a blank line between them"""


class Prompt(NamedTuple):
    """What `_encode` turns into a view."""

    messages: list[dict[str, Any]]
    """content is a list of `{"type": "text", "text": ..}` and `{"type": "image"}` parts"""
    images: list[Any]
    """PIL images in the order of those parts"""


ENCODED_TOGETHER = 64
"""Prompts whose images are prepared in one call of the image processor."""


class ViewProcessor(ABC):
    """Renders examples for one model family.

    Args:
        config: the model's own configuration.
        processing_class: its tokenizer, or processor where it sees images.
        max_prompt_length: longest prompt in tokens. A longer one is refused, never cut.
        chat_template_kwargs: passed to the chat template of every view alike, e.g. `{"enable_thinking": False}`; were
            they to differ between views, the first response token would show a gap that is not there.
    """

    reads_images = False
    bound_by = "data.max_pixels"
    """the setting that bounds its images, to name it where they are too large"""

    def __init__(
        self,
        config: PreTrainedConfig,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        max_prompt_length: int | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.config = config
        self.processing_class = processing_class
        self.tokenizer: Any = getattr(processing_class, "tokenizer", processing_class)
        self.max_prompt_length = max_prompt_length
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self._control_tokens = [
            token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special
        ]

    def view(self, example: Mapping[str, Any], variant: str = "none", addition: str | None = None) -> View:
        """Render `example` (columns of a privileged dataset) with the named variant of its privileged input.

        Raises:
            ViewError: an image cannot be read or is not read by this model, image markers and images differ in number,
                the prompt holds one of the tokenizer's control tokens, or is longer than `max_prompt_length`.
            MissingPrivilege: the example lacks what the variant shows (a ValueError too).
        """
        [result] = self.view_all([Request(example, variant, addition)])
        if isinstance(result, ValueError):
            raise result
        return result

    def view_all(self, requests: Sequence[Request]) -> list[View | ValueError]:
        """Render many: cheaper than one by one. Where `view` would raise, its error stands in the view's place."""
        images: dict[int, list[Any] | ValueError] = {}  # the views of one example share its images
        prompts: list[Prompt | ValueError] = []
        for request in requests:
            try:
                prompts.append(self._prompt(request, images))
            except ValueError as error:
                prompts.append(error)
        good = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        encoded = iter(
            [
                view
                for start in range(0, len(good), ENCODED_TOGETHER)
                for view in self._encode_all(good[start : start + ENCODED_TOGETHER])
            ]
        )
        return [
            prompt if isinstance(prompt, ValueError) else self._checked(next(encoded), request)
            for request, prompt in zip(requests, prompts, strict=True)
        ]

    def bounded(self, min_pixels: int | None, max_pixels: int | None, key: str) -> "ViewProcessor":
        """The same, for images of at least and at most so many pixels; the model's own bounds hold besides.

        Args:
            key: the setting that `max_pixels` comes from, for errors.

        Raises:
            UserError: no image is within these bounds, or this processor has none.
        """
        raise UserError(f"{key}: {type(self).__name__} does not bound the images that it shows")

    def keep_bounds(self) -> None:  # noqa: B027 - a processor without bounds has none to keep
        """Leave its bounds in the processing class, which is saved with the model."""

    @cached_property
    def picture(self) -> View:
        """A prompt of one small image and nothing else, for a family that reads images."""
        return self._encode([{"role": "user", "content": [{"type": "image"}]}], [Image.new("RGB", (32, 32))])

    @cached_property
    def blank(self) -> View:
        """A prompt of one token and nothing else, to stand in the place of one that cannot be shown."""
        return View([self.tokenizer.pad_token_id])

    def _prompt(self, request: Request, known_images: dict[int, list[Any] | ValueError]) -> Prompt:
        example, variant, addition = request
        name = f"example {example['id']!r}"
        images = known_images.get(id(example))
        if images is None:
            try:
                images = [load_image(image).image for image in example.get("images") or []]
            except ValueError as error:
                images = error
            known_images[id(example)] = images
        if isinstance(images, ValueError):
            raise ViewError(f"{name}: {images}") from images
        try:
            messages = [
                message if isinstance(message["content"], str) else chat_message(message, number)
                for number, message in enumerate(example["prompt"])
            ]
        except RecordError as error:
            raise ViewError(f"{name}: {error}") from error
        rendered = VARIANTS[variant].render({**example, "prompt": messages, "images": images})
        if addition is not None:
            rendered = replace(rendered, messages=append_to_last_user(rendered.messages, addition))
        if rendered.images and not self.reads_images:
            raise ViewError(
                f"{name} has {len(rendered.images)} image(s), but a {self.config.model_type} model reads text only: "
                "use a vision-language model or a data set without images"
            )
        for message in rendered.messages:
            for token in self._control_tokens:
                if token in message["content"]:
                    raise ViewError(f"{name}: its prompt holds the control token {token}")
        try:
            return Prompt(split_content(rendered.messages, len(rendered.images)), list(rendered.images))
        except ValueError as error:
            raise ViewError(f"{name}: {error}") from error

    def _checked(self, view: View | ViewError, request: Request) -> View | ViewError:
        if isinstance(view, ViewError):
            return ViewError(f"example {request.example['id']!r}: {view}")
        if self.max_prompt_length is None or len(view.prompt_ids) <= self.max_prompt_length:
            return view
        of_images = (view.mm_token_type_ids or []).count(1)
        return ViewError(
            f"example {request.example['id']!r}: its prompt in variant {request.variant!r} has {len(view.prompt_ids)} "
            f"tokens, more than max_prompt_length={self.max_prompt_length}"
            + (
                f"; {of_images} of them are its images', which a lower {self.bound_by} makes smaller"
                if of_images
                else ""
            )
        )

    def _templated(self, template: Any, messages: Sequence[Mapping[str, Any]]) -> str:
        """The messages by the chat template of a processor or of a tokenizer.

        Raises:
            ViewError: the template refuses them, as it does what its model was not taught, e.g. a system message.
        """
        try:
            text: str = template.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
            )
        except TemplateError as error:
            raise ViewError(f"the chat template refuses its messages ({error})") from error
        return text

    @abstractmethod
    def _encode(self, messages: list[dict[str, Any]], images: list[Any]) -> View:
        """Tokenise messages whose content is a list of `{"type": "text", "text": ..}` and `{"type": "image"}` parts.

        Raises:
            ViewError: this model cannot be shown them; the message need not name the example.
        """

    def _encode_all(self, prompts: Sequence[Prompt]) -> list[View | ViewError]:
        """As `_encode` for each, an error in the view's place; a family that can do many at once overrides it."""
        views: list[View | ViewError] = []
        for prompt in prompts:
            try:
                views.append(self._encode(*prompt))
            except ViewError as error:
                views.append(error)
        return views

    def collate(
        self, views: Sequence[View], response_ids: Sequence[Sequence[int]], pad_token_id: int
    ) -> dict[str, Tensor]:
        """Model inputs for `views[b]` followed by `response_ids[b]`: prompts left-padded, responses right-padded.

        Response tokens start at the same column in every row: `input_ids.shape[1] - max(len(r) for r in response_ids)`.
        """
        if len(views) != len(response_ids):
            raise ValueError(f"{len(views)} views but {len(response_ids)} responses")
        prompt_length = max(len(view.prompt_ids) for view in views)
        response_length = max((len(ids) for ids in response_ids), default=0)

        def padded(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], fill: int) -> Tensor:
            return torch.tensor(
                [
                    [fill] * (prompt_length - len(prompt))
                    + list(prompt)
                    + list(response)
                    + [fill] * (response_length - len(response))
                    for prompt, response in zip(prompts, responses, strict=True)
                ],
                dtype=torch.long,
            )

        prompts = [view.prompt_ids for view in views]
        ones = ([[1] * len(prompt) for prompt in prompts], [[1] * len(ids) for ids in response_ids])
        batch = {"input_ids": padded(prompts, response_ids, pad_token_id), "attention_mask": padded(*ones, fill=0)}
        pixel_values = [view.pixel_values for view in views if view.pixel_values is not None]
        if pixel_values:
            kinds = [view.mm_token_type_ids or [0] * len(view.prompt_ids) for view in views]
            batch["mm_token_type_ids"] = padded(kinds, [[0] * len(ids) for ids in response_ids], fill=0)
            batch["pixel_values"] = torch.cat(pixel_values)
            batch["image_grid_thw"] = torch.cat([v.image_grid_thw for v in views if v.image_grid_thw is not None])
        return batch
