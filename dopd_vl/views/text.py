"""Views for text models: Qwen3 and any other causal language model with a chat template."""

from typing import Any

from dopd_vl.common.errors import UserError
from dopd_vl.views.base import View, ViewProcessor

LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "openai-gpt")
"""Model types with an embedding of each position, which the padding on a prompt's left would shift."""


class TextViewProcessor(ViewProcessor):
    """Renders the chat template with plain text; an example with images is refused.

    Raises:
        UserError: the tokenizer has no chat template, or the model has learned positions.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.config.model_type in LEARNED_POSITIONS:
            raise UserError(
                f"a {self.config.model_type} model has learned positions, which padding would shift; use one with "
                "rotary or relative positions"
            )
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: its tokenizer has no chat template; use an instruction-tuned model, "
                "or put a chat_template.jinja beside tokenizer.json"
            )

    def _encode(self, messages: list[dict[str, Any]], images: list[Any]) -> View:
        plain = [
            {"role": message["role"], "content": "".join(part["text"] for part in message["content"])}
            for message in messages
        ]
        text = self._templated(self.tokenizer, plain)
        return View(prompt_ids=self.tokenizer(text, add_special_tokens=False)["input_ids"])
