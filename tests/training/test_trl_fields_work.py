"""Each field of TRL's configuration that is meant does what it says: a run with it shows what one without does not.

Fields that do not disturb each other share a run. What cannot be seen here, or is seen in another file, is listed with
the reason.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from peft import LoraConfig
from transformers import AutoProcessor, EarlyStoppingCallback, ProgressCallback, TrainerCallback
from transformers.integrations import integration_utils
from trl.trainer import distillation_trainer

from dopd_vl.training import checks
from dopd_vl.training import trainer as trainer_module
from dopd_vl.training.run import load_examples
from dopd_vl.training.trl_fields import DRAWN_BY, MEANT
from tests.conftest import MakeTrainer


class Seen(TrainerCallback):
    """What a trainer did, step by step, from outside."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.result: Any = None
        self.ids: list[list[str]] = []
        """of the examples of each step"""
        self.columns: set[str] = set()
        self.prompts: list[torch.Tensor] = []
        self.responses: list[torch.Tensor] = []
        self.drawn_by: Any = None
        """transformers' settings of the last rollouts"""
        self.processors: dict[str, Any] = {}
        """of the rollouts' logits, by their kinds"""
        self.caches: set[str] = set()
        self.dtypes: set[torch.dtype] = set()
        self.noise = {"learning": 0.0, "acting": 0.0}
        """how far the embeddings that were read were from the model's, at most"""
        self.losses_asked = 0
        self.gradient_norms: list[float] = []
        self.rates: list[float] = []
        self.deterministic = False
        self.verbosity = 0

    def watch(self, trainer: Any, spoilt: bool) -> None:
        """`spoilt`: its losses are NaN."""
        self.trainer = trainer
        trainer.add_callback(self)
        model = getattr(trainer.model, "get_base_model", lambda: trainer.model)()
        step, loss_of = trainer._roll_out_and_score, trainer._compute_loss
        generate, processors_of = model.generate, model._get_logits_processor

        def remember_step(inputs: list[dict[str, Any]]) -> Any:
            self.ids.append([example["id"] for example in inputs])
            self.columns |= set(inputs[0])
            return step(inputs)

        def remember_loss(*args: Any) -> Any:
            self.losses_asked += 1
            loss, *more = loss_of(*args)
            return (loss * math.nan if spoilt else loss, *more)

        def remember_generate(**asked: Any) -> Any:
            drawn = generate(**asked)
            self.prompts.append(asked["input_ids"])
            self.responses.append(drawn[:, asked["input_ids"].shape[1] :])
            return drawn

        def remember_processors(*args: Any, **kwargs: Any) -> Any:
            made, self.drawn_by = processors_of(*args, **kwargs), kwargs["generation_config"]
            self.processors |= {type(processor).__name__: processor for processor in made}
            return made

        def remember_layer(layer: Any, args: Any, kwargs: Any) -> None:
            self.dtypes.add(layer.mlp.gate_proj(args[0]).dtype)
            self.caches.add(type(kwargs.get("cache")).__name__)

        trainer._roll_out_and_score, trainer._compute_loss = remember_step, remember_loss
        model.generate, model._get_logits_processor = remember_generate, remember_processors
        self.layers()[0].register_forward_pre_hook(remember_layer, with_kwargs=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        def remember_noise(module: Any, ids: Any, output: Any) -> None:
            kind = "learning" if torch.is_grad_enabled() else "acting"
            away = (output - torch.nn.functional.embedding(ids[0], module.weight)).abs().max().item()
            self.noise[kind] = max(self.noise[kind], away)

        self.trainer.model.get_input_embeddings().register_forward_hook(remember_noise)  # behind NEFTune's
        self.verbosity = transformers.utils.logging.get_verbosity()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        gradients = [p.grad.norm() for p in self.trainer.model.parameters() if p.grad is not None]
        self.gradient_norms.append(torch.stack(gradients).norm().item())
        self.rates.append(self.trainer.lr_scheduler.get_last_lr()[0])
        self.deterministic = torch.are_deterministic_algorithms_enabled()

    def steps_with(self, key: str) -> list[int]:
        return [row["step"] for row in self.trainer.state.log_history if key in row]

    def group(self) -> dict[str, Any]:
        groups: list[dict[str, Any]] = self.trainer.optimizer.param_groups
        return groups[0]

    def loader(self) -> Any:
        return self.trainer.get_train_dataloader()

    def layers(self) -> Any:
        return self.trainer.model.get_decoder().layers

    def checkpointed(self) -> list[bool]:
        return [layer.gradient_checkpointing for layer in self.layers()]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in Path(self.trainer.args.output_dir).glob("checkpoint-*"))


class Group(NamedTuple):
    """Fields that one run shows."""

    effects: dict[str, tuple[Any, Callable[[Seen], Any]]]
    """field -> its value, and what holds of a run with it but not of one without"""
    more: dict[str, Any] = {}  # noqa: RUF012 - never changed
    """settings of both runs"""
    trains: bool = True


GROUPS = {
    "models": Group(
        {
            "model_init_kwargs": ({"dtype": "bfloat16"}, lambda seen: seen.trainer.model.dtype == torch.bfloat16),
            "teacher_model_init_kwargs": (
                {"dtype": "bfloat16"},
                lambda seen: seen.trainer.teacher_model.dtype == torch.bfloat16,
            ),
            "disable_dropout": (
                True,
                lambda seen: all(m.p == 0 for m in seen.trainer.model.modules() if isinstance(m, torch.nn.Dropout)),
            ),
        },
        {"peft_config": LoraConfig(r=2, lora_dropout=0.3, target_modules=["q_proj"], task_type="CAUSAL_LM")},
        trains=False,
    ),
    "rollouts": Group(
        {
            "temperature": (2, lambda seen: seen.processors["TemperatureLogitsWarper"].temperature == 2.0),
            "top_p": (0.9, lambda seen: seen.processors["TopPLogitsWarper"].top_p == 0.9),
            "top_k": (7, lambda seen: seen.processors["TopKLogitsWarper"].top_k == 7),
            "min_p": (0.01, lambda seen: seen.processors["MinPLogitsWarper"].min_p == 0.01),
            "repetition_penalty": (2, lambda seen: seen.processors["RepetitionPenaltyLogitsProcessor"].penalty == 2.0),
            "generation_kwargs": (
                {"min_new_tokens": 5, "no_repeat_ngram_size": 2},
                lambda seen: seen.processors["NoRepeatNGramLogitsProcessor"].ngram_size == 2,
            ),
            "max_completion_length": (5, lambda seen: seen.responses[0].shape[1] == 5),
            "cache_implementation": ("static", lambda seen: "StaticCache" in seen.caches),
            "pad_to_multiple_of": (64, lambda seen: seen.prompts[0].shape[1] % 64 == 0),
            "chat_template_kwargs": (
                {"enable_thinking": False},
                lambda seen: "Question: " in seen.trainer.views.tokenizer.decode(seen.prompts[0][0]),
            ),
        },
        {"chat_template": "{% if enable_thinking is false %}Question: {% endif %}"},
    ),
    "steps": Group(
        {
            "per_device_train_batch_size": (2, lambda seen: seen.losses_asked == 2 * 3 and len(seen.ids[0]) == 4),
            "gradient_accumulation_steps": (2, lambda seen: seen.losses_asked == 2 * len(seen.ids)),
            "max_steps": (3, lambda seen: seen.trainer.state.global_step == 3),
            "learning_rate": (2e-3, lambda seen: seen.group()["initial_lr"] == 2e-3),
            # Back at the top of the second of two cycles, where a line or one cycle would be half way down.
            "lr_scheduler_type": ("cosine_with_restarts", lambda seen: seen.rates[2] == pytest.approx(2e-3)),
            "lr_scheduler_kwargs": ({"num_cycles": 2}, lambda seen: seen.rates[2] == pytest.approx(2e-3)),
            "warmup_steps": (1, lambda seen: seen.rates[0] == 0.0),
            "optim": ("adamw_torch", lambda seen: not seen.group()["fused"]),
            "weight_decay": (0.25, lambda seen: seen.group()["weight_decay"] == 0.25),
            "adam_beta1": (0.5, lambda seen: seen.group()["betas"][0] == 0.5),
            "adam_beta2": (0.6, lambda seen: seen.group()["betas"][1] == 0.6),
            "adam_epsilon": (1e-3, lambda seen: seen.group()["eps"] == 1e-3),
            "max_grad_norm": (1e-3, lambda seen: max(seen.gradient_norms) < 1.01e-3),
        }
    ),
    "another optimizer": Group(
        {
            "optim_args": ("momentum=0.75, nesterov=True", lambda seen: seen.group()["momentum"] == 0.75),
            "num_train_epochs": (2, lambda seen: seen.trainer.state.global_step == 2),
            "neftune_noise_alpha": (5.0, lambda seen: seen.noise["learning"] > 0 == seen.noise["acting"]),
            "full_determinism": (True, lambda seen: seen.deterministic),
            "skip_memory_metrics": (False, lambda seen: "train_mem_cpu_peaked_delta" in seen.result.metrics),
            "debug": ("underflow_overflow", lambda seen: len(seen.trainer.model.model.norm._forward_hooks) == 1),
        },
        {"optim": "sgd", "max_steps": -1, "num_train_epochs": 1, "examples": 4},
    ),
    "data": Group(
        {
            "shuffle_dataset": (False, lambda seen: seen.ids[0] == seen.trainer.train_dataset["id"][:4]),
            "remove_unused_columns": (True, lambda seen: "level" not in seen.columns),
            "dataloader_num_workers": (1, lambda seen: seen.loader().num_workers == 1),
            "dataloader_persistent_workers": (True, lambda seen: seen.loader().persistent_workers),
            "dataloader_prefetch_factor": (3, lambda seen: seen.loader().prefetch_factor == 3),
            "dataloader_multiprocessing_context": ("fork", lambda seen: seen.loader().multiprocessing_context),
            "accelerator_config": (
                {"non_blocking": True},
                lambda seen: seen.trainer.accelerator.dataloader_config.non_blocking,
            ),
        }
    ),
    "precision": Group(
        {
            "logging_strategy": ("no", lambda seen: seen.steps_with("loss") == []),
            "bf16": (True, lambda seen: torch.bfloat16 in seen.dtypes),
            "activation_checkpointing": (True, lambda seen: any(seen.checkpointed())),
            "activation_checkpointing_kwargs": (
                {"use_reentrant": False, "preserve_rng_state": False},
                lambda seen: seen.layers()[0]._gradient_checkpointing_func.keywords["preserve_rng_state"] is False,
            ),
        }
    ),
    "evaluation": Group(
        {
            "eval_strategy": ("steps", lambda seen: seen.steps_with("eval_accuracy") != []),
            "eval_steps": (1, lambda seen: {2, 3} <= set(seen.steps_with("eval_accuracy"))),
            "eval_delay": (2, lambda seen: seen.steps_with("eval_accuracy") == [0, 2, 3]),
            "eval_on_start": (True, lambda seen: 0 in seen.steps_with("eval_accuracy")),
            "per_device_eval_batch_size": (2, lambda seen: {len(prompts) for prompts in seen.prompts} == {2, 4}),
        },
        {"max_steps": 3},
    ),
    "logs": Group(
        {
            "seed": (8, lambda seen: seen.ids[0] == drawn_first(seen, 8)),
            "logging_steps": (2, lambda seen: 3 not in seen.steps_with("loss")),
            "logging_first_step": (True, lambda seen: seen.steps_with("loss") == [1, 2]),
            "log_level": ("error", lambda seen: seen.verbosity == logging.ERROR),
            "disable_tqdm": (
                False,
                lambda seen: ProgressCallback in map(type, seen.trainer.callback_handler.callbacks),
            ),
        },
        {"max_steps": 3},
    ),
    "a loss that is no number": Group(
        {"logging_nan_inf_filter": (False, lambda seen: math.isnan(seen.trainer.state.log_history[0]["loss"]))},
        {"spoilt": True},
    ),
    "checkpoints": Group(
        {
            "gradient_checkpointing": (True, lambda seen: all(seen.checkpointed())),
            "gradient_checkpointing_kwargs": (
                {"use_reentrant": True},
                lambda seen: seen.layers()[0]._gradient_checkpointing_func.keywords["use_reentrant"],
            ),
            "save_strategy": ("steps", lambda seen: seen.checkpoints() != []),
            "save_steps": (1, lambda seen: "checkpoint-2" in seen.checkpoints()),
            "save_total_limit": (1, lambda seen: seen.checkpoints() == ["checkpoint-2"]),
        },
        {"max_steps": 2},
    ),
}

HUB: dict[str, Any] = {
    "push_to_hub": True,
    "hub_token": "hf_a",
    "hub_private_repo": True,
    "hub_model_id": "user/small",
    "hub_strategy": "all_checkpoints",
    "hub_always_push": True,
    "hub_revision": "v1",
}
LOADED = ["trust_remote_code", "teacher_model_revision"]
TRACKED = {
    "run_name": "name",
    "project": "project",
    "trackio_space_id": "space_id",
    "trackio_bucket_id": "bucket_id",
}
VLLM: dict[str, Any] = {
    "vllm_mode": "server",
    "vllm_model_impl": "transformers",
    "vllm_enable_sleep_mode": True,
    "vllm_structured_outputs_regex": "a*",
    "vllm_server_base_url": "http://elsewhere",
    "vllm_server_host": "host",
    "vllm_server_port": 1,
    "vllm_server_timeout": 2.0,
    "vllm_group_port": 3,
    "vllm_gpu_memory_utilization": 0.125,
    "vllm_max_model_length": 4096,
    "vllm_tensor_parallel_size": 2,
}

_RANKS = "is seen of several ranks: test_trl_fields_of_ranks.py"
_SCRIPT = "is for scripts of transformers, and no trainer reads it"
_CUDA = "needs a GPU"

ELSEWHERE = {
    "output_dir": "is where every run here lies",
    "use_cpu": "is what every run here is told; nothing else is to be had",
    "tf32": _CUDA,
    "fp16": _CUDA,
    "torch_empty_cache_steps": _CUDA,
    "ddp_timeout": _CUDA,
    "dataloader_pin_memory": _CUDA,
    "optim_target_modules": "needs GaLore or APOLLO",
    "dataloader_drop_last": "a step that the data cannot fill is never taken, with it or without",
    "log_on_each_node": "needs two nodes",
    "local_rank": "is the launcher's to set",
    "deepspeed": "needs DeepSpeed: test_deepspeed.py",
    "ds3_gather_for_generation": "needs DeepSpeed",
    "report_to": "test_trackers.py",
    "trackio_static_space_id": "is read when a Space of the hub is made",
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "test_trl_fields.py"),
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "resume_from_checkpoint"), _SCRIPT),
    **dict.fromkeys(("fsdp", "fsdp_config", "log_level_replica", "ddp_backend"), _RANKS),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters"), _RANKS),
}
"""Fields that are not seen in this file, with the reason."""


def test_every_field_is_seen_to_work_or_listed_with_the_reason() -> None:
    seen = [name for group in GROUPS.values() for name in group.effects]
    seen += [*HUB, *LOADED, *TRACKED, *VLLM, "use_vllm", "restore_callback_states_from_checkpoint"]
    assert sorted([*seen, *ELSEWHERE]) == sorted(MEANT)


def drawn_first(seen: Seen, seed: int) -> list[str]:
    ids = seen.trainer.train_dataset["id"]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist()
    return [ids[number] for number in order[:4]]


@pytest.fixture
def as_before() -> Iterator[None]:
    """What a run may change for the whole process is put back; it begins with transformers' own verbosity."""
    verbosity, environment = transformers.utils.logging.get_verbosity(), dict(os.environ)
    transformers.utils.logging.set_verbosity_warning()  # an earlier test may have run a command, which quietens it
    yield
    transformers.utils.logging.set_verbosity(verbosity)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def run(make_trainer: MakeTrainer, nano_models: Path, text_data: Path, as_before: None) -> Callable[..., Seen]:
    def make(trains: bool = True, **settings: Any) -> Seen:
        dataset = load_examples(str(text_data))
        dataset = dataset.add_column("level", [1] * len(dataset)).select(range(settings.pop("examples", len(dataset))))
        if "chat_template" in settings:
            settings["processing_class"] = AutoProcessor.from_pretrained(
                nano_models / "text-student", padding_side="left"
            )
            settings["processing_class"].chat_template = (
                settings.pop("chat_template") + settings["processing_class"].chat_template
            )
        spoilt, seen = settings.pop("spoilt", False), Seen()
        seen.watch(make_trainer("text", dataset=dataset, eval_dataset=dataset.select(range(4)), **settings), spoilt)
        seen.result = seen.trainer.train() if trains else None
        return seen

    return make


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_a_field_does_what_it_says(group: Group, run: Callable[..., Seen]) -> None:
    without = run(group.trains, **group.more)
    gone_wrong = [name for name, (_, holds) in group.effects.items() if holds_of(holds, without)]
    assert gone_wrong == [], "holds without the field"
    values = {name: value for name, (value, _) in group.effects.items()}
    seen = run(group.trains, **{**group.more, **values})
    assert [name for name, (_, holds) in group.effects.items() if not holds(seen)] == []


def holds_of(holds: Callable[[Seen], Any], seen: Seen) -> bool:
    try:
        return bool(holds(seen))
    except (AttributeError, IndexError, KeyError):  # what would show the effect is not there at all
        return False


def test_models_and_tokenizers_are_loaded_as_is_asked(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[tuple[str, str | None, bool]] = []

    def noting(owner: Any, name: str, kind: str) -> None:
        inner = getattr(owner, name)

        def load(path: Any, **kwargs: Any) -> Any:
            loads.append((f"{kind} {Path(path).name}", kwargs.get("revision"), kwargs["trust_remote_code"]))
            return inner(path, **kwargs)

        monkeypatch.setattr(owner, name, load)

    noting(distillation_trainer, "create_model_from_path", "model")
    noting(trainer_module.AutoProcessor, "from_pretrained", "tokenizer")
    noting(checks.AutoTokenizer, "from_pretrained", "tokenizer")
    make_trainer("text", trust_remote_code=True, model_init_kwargs={"revision": "v1"}, teacher_model_revision="v2")
    assert set(loads) == {
        (f"{kind} text-{role}", revision, True)
        for kind in ("model", "tokenizer")
        for role, revision in (("student", "v1"), ("teacher", "v2"))
    }


def test_vllm_is_asked_for_what_the_fields_say(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(distillation_trainer, "is_vllm_available", lambda: True)
    monkeypatch.setattr(
        distillation_trainer, "VLLMGeneration", lambda **given: asked.update(given) or SimpleNamespace(**given)
    )
    make_trainer("text", use_vllm=True, **VLLM)
    names = {name: name.removeprefix("vllm_") for name in VLLM}
    assert {name: asked[given] for name, given in names.items()} == VLLM


def test_a_tracker_is_told_the_names_of_run_and_project(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    space = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))
    fake = SimpleNamespace(init=lambda **given: begun.append(given), context_vars=space, config={})
    monkeypatch.setattr(integration_utils, "is_trackio_available", lambda: True)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    values = {field: f"the {field}" for field in TRACKED}
    trainer = make_trainer("text", hub_private_repo=True, **values)
    callback = integration_utils.TrackioCallback()
    fake.config = SimpleNamespace(update=lambda *args, **kwargs: None, __setitem__=lambda *args: None)
    with suppress(TypeError):  # of the number of weights, after what is looked at here
        callback.setup(trainer.args, trainer.state, trainer.model)
    assert {field: begun[0][name] for field, name in TRACKED.items()} == values
    assert begun[0]["private"] is True


def test_checkpoints_are_pushed_as_the_fields_say(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    pushed: list[dict[str, Any]] = []
    api = SimpleNamespace(
        create_repo=lambda name, **given: made.append({"name": name, **given}) or SimpleNamespace(repo_id=name),
        upload_folder=lambda **given: pushed.append(given) or SimpleNamespace(done=lambda: False, result=lambda: None),
        create_branch=lambda *args, **given: None,
    )
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda *args: api)
    trainer = make_trainer(
        "text",
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        **HUB,
    )
    monkeypatch.setattr(trainer, "_finish_current_push", lambda: None)
    trainer.train()
    assert made
    assert {(repo["name"], repo["private"], repo["token"]) for repo in made} == {("user/small", True, "hf_a")}
    assert {(push["repo_id"], push["revision"], push["token"]) for push in pushed} == {("user/small", "v1", "hf_a")}
    # Each checkpoint, though the push before it never ends.
    assert [push["path_in_repo"] for push in pushed if "path_in_repo" in push] == ["checkpoint-1", "checkpoint-2"]


BY_PROCESSORS: dict[str, tuple[Any, str]] = {
    "top_p": (0.9, "TopPLogitsWarper"),
    "top_k": (9, "TopKLogitsWarper"),
    "min_p": (0.001, "MinPLogitsWarper"),
    "top_h": (0.9, "TopHLogitsWarper"),
    "typical_p": (0.9, "TypicalLogitsWarper"),
    "epsilon_cutoff": (0.001, "EpsilonLogitsWarper"),
    "eta_cutoff": (0.001, "EtaLogitsWarper"),
    "repetition_penalty": (2, "RepetitionPenaltyLogitsProcessor"),
    "no_repeat_ngram_size": (2, "NoRepeatNGramLogitsProcessor"),
    "min_new_tokens": (2, "MinNewTokensLengthLogitsProcessor"),
    "min_length": (200, "MinLengthLogitsProcessor"),
    "exponential_decay_length_penalty": ([2, 1.5], "ExponentialDecayLengthPenalty"),
    "bad_words_ids": ([[7], [8, 9]], "NoBadWordsLogitsProcessor"),
    "sequence_bias": ([[[10, 11], -1.0]], "SequenceBiasLogitsProcessor"),
    "suppress_tokens": ([12], "SuppressTokensLogitsProcessor"),
    "begin_suppress_tokens": ([13], "SuppressTokensAtBeginLogitsProcessor"),
    "forced_eos_token_id": (1, "ForcedEOSTokenLogitsProcessor"),
    "guidance_scale": (1.5, "UnbatchedClassifierFreeGuidanceLogitsProcessor"),
    "remove_invalid_values": (True, "InfNanRemoveLogitsProcessor"),
    "renormalize_logits": (True, "LogitNormalization"),
}
BY_SEARCH = {"num_beams": 2, "early_stopping": True, "length_penalty": -0.5, "max_time": 60.0, "prefill_chunk_size": 8}
BY_SEARCH["do_sample"] = False


def test_every_key_of_generation_kwargs_that_is_taken_is_gone_by(run: Callable[..., Seen]) -> None:
    assert {*BY_PROCESSORS, *BY_SEARCH} == DRAWN_BY
    values = {key: value for key, (value, _) in BY_PROCESSORS.items()}
    seen = run(generation_kwargs=values)
    assert set(seen.processors) == {kind for _, kind in BY_PROCESSORS.values()}
    assert set(run().processors) <= {
        "InfNanRemoveLogitsProcessor"
    }  # a student that diverged is drawn from all the same
    assert not run(generation_kwargs={"remove_invalid_values": False}).processors
    seen = run(generation_kwargs=BY_SEARCH)
    assert {key: getattr(seen.drawn_by, key) for key in BY_SEARCH} == BY_SEARCH


@pytest.mark.parametrize("restored", [False, True])
def test_callbacks_take_up_their_state_where_that_is_asked(
    make_trainer: MakeTrainer, text_data: Path, restored: bool
) -> None:
    dataset = load_examples(str(text_data)).select([0])
    saves: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "metric_for_best_model": "accuracy"}
    saves |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    before = make_trainer("text", callbacks=[EarlyStoppingCallback(7)], **saves, eval_dataset=dataset)
    before.train()
    after = make_trainer(
        "text",
        max_steps=2,
        callbacks=[EarlyStoppingCallback(3)],
        restore_callback_states_from_checkpoint=restored,
        eval_dataset=dataset,
        **saves,
    )
    after.train(resume_from_checkpoint=True)
    [found] = [c for c in after.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
    assert found.early_stopping_patience == (7 if restored else 3)


def test_a_step_that_the_data_cannot_fill_is_never_taken(run: Callable[..., Seen]) -> None:
    for drop_last in (False, True):
        seen = run(max_steps=-1, num_train_epochs=1, examples=7, dataloader_drop_last=drop_last)
        assert [len(ids) for ids in seen.ids] == [4]
