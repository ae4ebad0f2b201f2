"""What each field of `trl.DistillationConfig` comes to here: meant as its documentation says, or refused with a reason.

A field that stands in neither table, of a later TRL or transformers, is refused as well until it was tried.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trl import DistillationConfig

from dopd_vl.common.errors import ConfigurationError

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
    "gradient_checkpointing_kwargs torch_empty_cache_steps use_liger_kernel liger_kernel_config fsdp fsdp_config "
    "deepspeed ddp_backend ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters "
    "ddp_static_graph local_rank",
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

REFUSED_INSIDE = {
    "accelerator_config": {
        "split_batches": "a step would have fewer rollouts than per_device_train_batch_size says",
        "dispatch_batches": "examples are no tensors that one process could deal out",
    },
    "generation_kwargs": {
        "num_return_sequences": "a prompt's rollouts are counted by num_generations",
        "n": "a prompt's rollouts are counted by num_generations",
        "return_dict_in_generate": "rollouts are token ids",
        **dict.fromkeys(("max_new_tokens", "max_length", "max_tokens"), "has a key of its own, max_completion_length"),
        "temperature": "has a key of its own, temperature",
    },
}
"""Keys of a field's mapping, with any value that is not false."""

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
    """Whether the keys of fields that are mappings can be kept to; arguments and errors as of `check_fields`."""
    for name, reasons in REFUSED_INSIDE.items():
        value = given.get(name)
        inside = value if isinstance(value, Mapping) else vars(value) if dataclasses.is_dataclass(value) else {}
        for key, reason in reasons.items():
            if inside.get(key):
                raise ConfigurationError(f"{where}{name}.{key}: {reason}")


def _default(field: Any) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
