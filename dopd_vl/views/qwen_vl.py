"""Views for Qwen3-VL: several images a prompt, text-only prompts among them.

Images are resized by qwen-vl-utils, as Qwen's own code does, to multiples of one merged patch between the image
processor's bounds. mRoPE positions are left to the model, which derives them per view from `mm_token_type_ids` and
`image_grid_thw`: they differ between views.
"""

from typing import Any

from qwen_vl_utils.vision_process import SPATIAL_MERGE_SIZE, fetch_image

from dopd_vl.views.base import View, ViewProcessor


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
        self._bounds = {
            "min_pixels": image_processor.size["shortest_edge"],
            "max_pixels": image_processor.size["longest_edge"],
        }

    def _encode(self, messages: list[dict[str, Any]], images: list[Any]) -> View:
        text = self.processing_class.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )
        if not images:
            return View(prompt_ids=self.tokenizer(text, add_special_tokens=False)["input_ids"])
        resized = [fetch_image({"image": image, **self._bounds}, image_patch_size=self._patch_size) for image in images]
        encoded = self.processing_class(text=[text], images=resized, do_resize=False, return_tensors="pt")
        return View(
            prompt_ids=encoded["input_ids"][0].tolist(),
            images=resized,
            mm_token_type_ids=encoded["mm_token_type_ids"][0].tolist(),
            pixel_values=encoded["pixel_values"],
            image_grid_thw=encoded["image_grid_thw"],
        )
