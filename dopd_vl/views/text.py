"""Views for text models: Qwen3 and any other causal language model with a chat template."""

from typing import Any

from dopd_vl.views.base import View, ViewProcessor


class TextViewProcessor(ViewProcessor):
    """Renders the chat template with plain text; an example with images is refused."""

    def _encode(self, messages: list[dict[str, Any]], images: list[Any]) -> View:
        plain = [
            {"role": message["role"], "content": "".join(part["text"] for part in message["content"])}
            for message in messages
        ]
        text = self.tokenizer.apply_chat_template(
            plain, tokenize=False, add_generation_prompt=True, **self.chat_template_kwargs
        )
        return View(prompt_ids=self.tokenizer(text, add_special_tokens=False)["input_ids"])
