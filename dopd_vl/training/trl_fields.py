"""What each field of `trl.DistillationConfig` comes to here: meant as its documentation says, or refused with a reason.

A field that stands in neither table, of a later TRL or transformers, is refused as well until it was tried.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig
from trl import DistillationConfig

from dopd_vl.common.errors import ConfigurationError, nearest
from dopd_vl.common.files import is_number

_MEANT = {
    "models": "model_init_kwargs teacher_model_init_kwargs teacher_model_revision trust_remote_code disable_dropout",
    "rollouts": "max_completion_length temperature top_p top_k min_p repetition_penalty generation_kwargs "
    "chat_template_kwargs cache_implementation pad_to_multiple_of ds3_gather_for_generation use_vllm vllm_mode "
    "vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host "
    "vllm_server_port vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length "
    "vllm_tensor_parallel_size",
    "steps": "per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps learning_rate "
    "lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args optim_target_modules weight_decay "
    "adam_beta1 adam_beta2 adam_epsilon max_grad_norm neftune_noise_alpha seed full_determinism",
    "data": "shuffle_dataset remove_unused_columns dataloader_drop_last dataloader_num_workers dataloader_pin_memory "
    "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
    "accelerator_config",
    "devices": "bf16 fp16 tf32 use_cpu activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
    "gradient_checkpointing_kwargs torch_empty_cache_steps fsdp fsdp_config deepspeed ddp_backend ddp_timeout "
    "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters local_rank",
    "evaluation": "do_eval eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size "
    "load_best_model_at_end metric_for_best_model greater_is_better",
    "logs": "logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_on_each_node log_level "
    "log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id "
    "trackio_static_space_id skip_memory_metrics debug",
    "checkpoints, and the hub": "output_dir save_strategy save_steps save_total_limit resume_from_checkpoint "
    "restore_callback_states_from_checkpoint do_train do_predict push_to_hub hub_token hub_private_repo "
    "hub_model_id hub_strategy hub_always_push hub_revision",
}
MEANT = frozenset(" ".join(_MEANT.values()).split())

_NO_LABELS = "there are no labels: a step learns from rollouts, by the objective"
_RESPONSES = "evaluation draws responses and asks the tasks' verifiers; it has no loss and gathers no logits"
_TABLES = "rollouts are kept in rollouts.jsonl with their scores and routing; set rollouts_to_keep"
_ORDER = "the order of the data is drawn with seed alone, or kept (shuffle_dataset), a prompt's rollouts side by side"
_RESUME = "a run that goes on must end as one that was never stopped"
_COMPILED = "scoring and learning ask the models' backbones, past the forward pass that would be compiled"
_LIGER = "its fused loss is one of labels, and there are none; the loss here is fused by its own kernels"

REFUSED = {
    "beta": "the divergence is the objective's; choose it there",
    "label_smoothing_factor": _NO_LABELS,
    "label_names": _NO_LABELS,
    "average_tokens_across_devices": "a step's loss is the mean over the tokens of all devices, always",
    "include_num_input_tokens_seen": "tokens of prompts and rollouts are counted as num_tokens, always",
    "auto_find_batch_size": "a smaller batch found on the way would change the step and part a prompt's rollouts",
    "max_tool_calling_iterations": "rollouts call no tools",
    "teacher_model_name_or_path": "nothing reads it; name the teacher by model.teacher, from Python by teacher_model",
    "use_cache": "rollouts always use a cache, and learning none",
    "torch_compile": _COMPILED,
    "torch_compile_backend": _COMPILED,
    "torch_compile_mode": _COMPILED,
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "ddp_static_graph": "a step's slices use other layers than the last one's, as examples with and without images do",
    "parallelism_config": "parts of a model are split by FSDP2 or DeepSpeed alone",
    "bf16_full_eval": "the weights of an evaluation are those of the training",
    "fp16_full_eval": "the weights of an evaluation are those of the training",
    "prediction_loss_only": _RESPONSES,
    "eval_do_concat_batches": _RESPONSES,
    "eval_use_gather_object": _RESPONSES,
    "eval_accumulation_steps": _RESPONSES,
    "include_for_metrics": _RESPONSES,
    "batch_eval_metrics": _RESPONSES,
    "log_completions": _TABLES,
    "num_completions_to_print": _TABLES,
    "log_unique_prompts": _TABLES,
    "data_seed": _ORDER,
    "train_sampling_strategy": _ORDER,
    "length_column_name": _ORDER,
    "dataloader_in_order": _ORDER,
    "ignore_data_skip": f"{_RESUME}, and this would show it the same examples again",
    "save_only_model": f"{_RESUME}, and the optimizer would not be saved",
    "save_on_each_node": f"{_RESUME}, and one folder that every node sees holds what that takes",
    "enable_jit_checkpoint": f"{_RESUME}, and this leaves a checkpoint that is not whole",
}
"""With any value but the default, wherever it is given."""

_ENDS = "a rollout's end and its padding are the student's own tokens"
_IDS = "rollouts are token ids"
_OWN = "has a key of its own"

REFUSED_INSIDE = {
    "accelerator_config": {
        "split_batches": "a step would have fewer rollouts than per_device_train_batch_size says",
        "dispatch_batches": "examples are no tensors that one process could deal out",
    },
    **dict.fromkeys(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        dict.fromkeys(("every_n_layers", "offload"), "TRL turns it on anew after each rollout, alike for every layer"),
    ),
    "generation_kwargs": {
        "num_return_sequences": "a prompt's rollouts are counted by num_generations",
        "n": "a prompt's rollouts are counted by num_generations",
        **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), _IDS),
        **dict.fromkeys(("output_attentions", "output_hidden_states"), _IDS),
        **dict.fromkeys(("max_new_tokens", "max_length", "max_tokens"), f"{_OWN}, max_completion_length"),
        **{name: f"{_OWN}, {name}" for name in ("temperature", "cache_implementation")},
        **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id", "stop_strings"), _ENDS),
    },
}
"""Keys of a field's mapping, with any value that is not false."""

_DRAWN_BY = (
    "do_sample top_p top_k min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty no_repeat_ngram_size "
    "num_beams early_stopping length_penalty min_new_tokens min_length exponential_decay_length_penalty max_time "
    "bad_words_ids sequence_bias suppress_tokens begin_suppress_tokens forced_eos_token_id guidance_scale "
    "remove_invalid_values renormalize_logits prefill_chunk_size"
)
DRAWN_BY = frozenset(_DRAWN_BY.split())
"""Keys of `generation_kwargs` that rollouts by transformers go by; those of vLLM's are its own to judge."""


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: value == int(value) and value >= least


_SHARE = (lambda value: 0 < value <= 1, "above 0 and at most 1")
_CUTOFF = (lambda value: 0 <= value < 1, "at least 0 and below 1")
_POSITIVE = (lambda value: value > 0, "above 0 and finite")
_COUNT = (_whole(0), "a whole number from 0 on")
_AT_LEAST_ONE = (_whole(1), "a whole number from 1 on")
_PENALTY = (lambda value: -2 <= value <= 2, "between -2 and 2")

BOUNDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "top_p": _SHARE,
    "top_k": (_whole(0), "a whole number from 0 on; 0 is the whole vocabulary"),
    "min_p": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "repetition_penalty": _POSITIVE,
    "pad_to_multiple_of": _AT_LEAST_ONE,
    "neftune_noise_alpha": (lambda value: value >= 0, "at least 0"),
    "adam_beta1": _CUTOFF,
    "adam_beta2": _CUTOFF,
    "adam_epsilon": (lambda value: value >= 0, "at least 0"),
    "dataloader_num_workers": _COUNT,
    "typical_p": _SHARE,
    "top_h": _SHARE,
    "epsilon_cutoff": _CUTOFF,
    "eta_cutoff": _CUTOFF,
    "no_repeat_ngram_size": _COUNT,
    "min_new_tokens": _COUNT,
    "min_length": _COUNT,
    "num_beams": _AT_LEAST_ONE,
    "length_penalty": (math.isfinite, "finite"),
    "max_time": _POSITIVE,
    "guidance_scale": _POSITIVE,
    "prefill_chunk_size": _AT_LEAST_ONE,
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
}
"""What a number may be, as a field or in a field's mapping: transformers passes many by that can have no effect."""

_LOADED = "models are loaded by the keys of model"
_BEST = "the accuracy on the first of training.eval_variants chooses the best student, which is kept apart in best/"
_HUB = "student/ is pushed when it is whole, by training.push_to_hub"
_SCRIPTS = "is for scripts of transformers, and nothing here reads it"

ONLY_FROM_PYTHON = {
    "model_init_kwargs": _LOADED,
    "teacher_model_init_kwargs": _LOADED,
    "activation_checkpointing": "is training.gradient_checkpointing here",
    "eval_strategy": "follows from data.eval and training.eval_steps",
    "eval_on_start": "a run with data.eval is evaluated before its first step, always",
    "save_strategy": "follows from training.save_steps",
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "use_cpu": "follows from the machine",
    "local_rank": "is the launcher's",
    "disable_tqdm": "the command shows a progress bar of its own",
    "resume_from_checkpoint": "give resume: true",
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_always_push", "hub_revision"), _HUB),
    "hub_token": "the run folder keeps its configuration; log in with `hf auth login`, or set HF_TOKEN",
    "do_train": _SCRIPTS,
    "do_eval": _SCRIPTS,
    "do_predict": _SCRIPTS,
}
"""Meant, but no key of `trl` in a configuration."""


def check_fields(given: Mapping[str, Any], where: str = "") -> None:
    """Whether fields of `DistillationConfig` can be kept to.

    Args:
        given: values by their fields' names; other names are passed by.
        where: what stands before a name in the message.

    Raises:
        ConfigurationError: one cannot; the message names it and says why.
    """
    for field in dataclasses.fields(DistillationConfig):
        if field.name in given and field.name not in MEANT and given[field.name] != _default(field):
            reason = REFUSED.get(field.name, "is new in TRL or transformers, and what it does here was not tried yet")
            raise ConfigurationError(f"{where}{field.name}: {reason}")
    check_inside(given, where)


def check_inside(given: Mapping[str, Any], where: str = "") -> None:
    """Whether numbers are within their bounds, and the keys of fields that are mappings can be kept to.

    Arguments and errors as of `check_fields`.
    """
    _check_bounds(given, where)
    if isinstance(given.get("generation_kwargs"), Mapping):
        _check_bounds(given["generation_kwargs"], f"{where}generation_kwargs.")
    for name, reasons in REFUSED_INSIDE.items():
        value = given.get(name)
        inside = value if isinstance(value, Mapping) else vars(value) if dataclasses.is_dataclass(value) else {}
        for key, reason in reasons.items():
            if inside.get(key) is not None and inside[key] is not False:
                raise ConfigurationError(f"{where}{name}.{key}: {reason}")


def check_names_of_generation(given: Mapping[str, Any], where: str = "") -> None:
    """Whether transformers draws rollouts by all of `generation_kwargs`; it takes any name, and does nothing by most.

    Arguments as of `check_fields`.

    Raises:
        ConfigurationError: names the one that would do nothing, and the nearest that does something.
    """
    asked = given.get("generation_kwargs")
    for key, value in asked.items() if isinstance(asked, Mapping) else ():
        if key not in DRAWN_BY and value is not None:
            what = "nothing that rollouts go by" if hasattr(GenerationConfig(), key) else "no setting of transformers"
            raise ConfigurationError(f"{where}generation_kwargs.{key}: is {what}; {nearest(key, DRAWN_BY)}")


def as_floats(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same with 2.0 for 2, where transformers takes no whole number."""
    names = ("temperature", "repetition_penalty", "top_p", "min_p", "typical_p", "top_h")
    return {key: float(value) if key in names and value is not None else value for key, value in given.items()}


def _check_bounds(given: Mapping[str, Any], where: str) -> None:
    for name, (holds, words) in BOUNDS.items():
        value = given.get(name)
        if value is None or (name == "pad_to_multiple_of" and isinstance(value, str)):
            continue
        if not (is_number(value) and holds(value)):
            raise ConfigurationError(f"{where}{name}: {value} is not {words}")


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
