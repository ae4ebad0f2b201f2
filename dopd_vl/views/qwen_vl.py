"""Views for Qwen3-VL and Qwen3.5: several images a prompt, text-only prompts among them.

Images are resized by qwen-vl-utils, as Qwen's own code does, to multiples of one merged patch between the image
processor's bounds. mRoPE positions are left to the model, which derives them per view from `mm_token_type_ids` and
`image_grid_thw`: they differ between views.
"""

from collections.abc import Sequence
from copy import copy
from typing import Any

from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE, fetch_image

from dopd_vl.common.errors import UserError
from dopd_vl.views.base import Prompt, View, ViewError, ViewProcessor


class QwenVLViewProcessor(ViewProcessor):
    """Renders the processor's chat template and runs its image processor."""

    reads_images = True

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        image_processor = self.processing_class.image_processor
        if image_processor.merge_size != SPATIAL_MERGE_SIZE:
            raise ValueError(
                f"the image processor merges {image_processor.merge_size} x {image_processor.merge_size} patches; "
                f"qwen-vl-utils resizes for {SPATIAL_MERGE_SIZE} x {SPATIAL_MERGE_SIZE}"
            )
        self._patch_size = image_processor.patch_size
        size = image_processor.size
        self._bounds = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}

    def bounded(self, min_pixels: int | None, max_pixels: int | None, key: str) -> "QwenVLViewProcessor":
        own_least, own_most = self._bounds["min_pixels"], self._bounds["max_pixels"]
        least = own_least if min_pixels is None else max(own_least, min_pixels)
        most = own_most if max_pixels is None else min(own_most, max_pixels)
        if most < own_least:
            raise UserError(f"{key}: {most} is less than the model's smallest image, {own_least} pixels")
        if most < least:
            raise UserError(f"data.min_pixels: {min_pixels} is more than the largest image, {most} pixels by {key}")
        other = copy(self)
        other._bounds, other.bound_by = {"min_pixels": least, "max_pixels": most}, key
        return other

    def keep_bounds(self) -> None:
        size = {"shortest_edge": self._bounds["min_pixels"], "longest_edge": self._bounds["max_pixels"]}
        self.processing_class.image_processor.size = size

    def _encode(self, messages: list[dict[str, Any]], images: list[Any]) -> View:
        [view] = self._encode_all([Prompt(messages, images)])
        if isinstance(view, ViewError):
            raise view
        return view

    def _encode_all(self, prompts: Sequence[Prompt]) -> list[View | ViewError]:
        ready: list[tuple[str, list[Any]] | ViewError] = []
        for messages, images in prompts:
            try:
                text = self._templated(self.processing_class, messages)
                ready.append((text, [self._resized(image) for image in images]))
            except ViewError as error:
                ready.append(error)
        good = [one for one in ready if not isinstance(one, ViewError)]
        views = iter(self._encode_together([text for text, _ in good], [images for _, images in good]))
        return [one if isinstance(one, ViewError) else next(views) for one in ready]

    def _encode_together(self, texts: list[str], resized: list[list[Any]]) -> list[View]:
        """One call of the processor for all: its cost is of the call more than of the images."""
        if not texts:
            return []
        every = [image for images in resized for image in images]
        if not every:
            return [View(prompt_ids=ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        encoded = self.processing_class(
            text=texts,
            images=every,
            do_resize=False,
            padding=False,
            images_kwargs={"return_tensors": "pt"},
        )
        grids = encoded["image_grid_thw"].split([len(images) for images in resized])
        pixels = encoded["pixel_values"].split([int(grid.prod(-1).sum()) for grid in grids])
        rows = zip(encoded["input_ids"], encoded["mm_token_type_ids"], resized, grids, pixels, strict=True)
        return [
            View(ids, images, kinds, some_pixels.clone(), grid.clone()) if images else View(ids)
            for ids, kinds, images, grid, some_pixels in rows
        ]

    def _resized(self, image: Any) -> Any:
        try:
            return fetch_image({"image": image, **self._bounds}, image_patch_size=self._patch_size)
        except ValueError as error:
            # Of a sliver nothing is left when it is made smaller.
            raise ViewError(
                f"an image of {image.width} x {image.height} is too thin to be shown in {self._bounds['max_pixels']} "
                f"pixels ({self.bound_by})"
            ) from error
