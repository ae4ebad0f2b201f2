"""The tokenizer and processor are ordinary Qwen ones with few entries."""

import pytest
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, Qwen2Tokenizer, Qwen3VLProcessor

from dopd_vl.nano.source import NanoSource
from dopd_vl.nano.tokenizer import CONTROL_TOKENS, VOCAB_SIZE, corpus, nano_processor, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(corpus(150, seed=0))


@pytest.fixture(scope="module")
def processor(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processor")
    nano_processor(tokenizer).save_pretrained(folder)
    return AutoProcessor.from_pretrained(folder)


def test_ids_are_contiguous_and_more_than_four_times_top_k(tokenizer):
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB_SIZE))
    assert VOCAB_SIZE > 4 * 128
    assert tokenizer.convert_ids_to_tokens(list(range(VOCAB_SIZE))[-len(CONTROL_TOKENS) :]) == list(CONTROL_TOKENS)


@pytest.mark.parametrize("text", ["I read 3 5 8. 3+5=8", 'Déjà vu 東京 🙂\n\n\t{"bbox_2d": [1, 2]}', " 12  x\r\n", ""])
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_reference_responses_come_back_and_are_short(tokenizer):
    for world in ("vision", "text"):
        source = NanoSource({"world": world, "split": "heldout", "size": 60})
        for index in range(60):
            response = source.record_and_response(index)[1]
            ids = tokenizer(response)["input_ids"]
            assert tokenizer.decode(ids) == response
            assert 8 <= len(ids) <= 48


def test_digits_are_single_tokens_and_control_tokens_never_come_from_plain_words(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("1234")["input_ids"]) == ["1", "2", "3", "4"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert set(tokenizer.all_special_tokens) == set(CONTROL_TOKENS)


def test_saved_and_loaded_it_is_the_same_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is Qwen2Tokenizer
    assert loaded.get_vocab() == tokenizer.get_vocab()
    chat = [{"role": "user", "content": "Add 3 and 5."}]
    shown = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert shown == "<|im_start|>user\nAdd 3 and 5.<|im_end|>\n<|im_start|>assistant\n"
    assert loaded(shown)["input_ids"] == tokenizer(shown)["input_ids"]


def test_a_scene_is_nine_tokens_at_its_own_size(processor):
    assert type(processor) is Qwen3VLProcessor
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Add all the digits."}]}]
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    encoded = processor(text=[text], images=[Image.new("RGB", (48, 48))], return_tensors="pt")
    image_id = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert encoded["image_grid_thw"].tolist() == [[1, 6, 6]]
    assert (encoded["input_ids"] == image_id).sum() == encoded["mm_token_type_ids"].sum() == 9
    assert encoded["pixel_values"].shape == (36, 3 * 2 * 8 * 8)


def test_too_small_a_corpus_is_refused():
    with pytest.raises(ValueError, match="use more texts"):
        train_tokenizer(["too little"])
