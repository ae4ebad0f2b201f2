"""The trainer: one optimizer step is views, rollouts, scores, a plan, and then learning by it.

What is TRL's stays TRL's: the loop, rollouts (transformers or vLLM), DDP / FSDP2 / DeepSpeed, LoRA, checkpoints,
loggers. Overridden seams, each pinned by a test:

    _set_signature_columns_if_needed   keep every column of a privileged data set
    get_train_dataloader               n rollouts of a prompt side by side, of a stream
    _get_train_sampler                 the same of a data set, in the order that the run began with
    _run_epoch                         a run that is resumed at its end is at its end
    _tokenize_prompts                  the rollout's prompt is the plain view, not a second rendering of it
    _generate_single_turn              the bare policy; vLLM in this process puts an image's other pads in itself
    _generate_and_score_completions    one optimizer step: views, rollouts, scores, plan
    _compute_loss                      one slice of it: the student's forward pass against the plan
    create_model_card, save_model      a card of ours

What policies make of the rollouts is asked of `policies.py`, how models are wrapped of `sharding.py`, and what scoring
hands over to learning is a `StepBatch`.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sized
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from peft import PeftConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint
from trl import DistillationTrainer
from trl.trainer.utils import RepeatSampler, create_model_from_path, repeat_iterable_dataset

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.common.run_layout import checkpoint_folder
from dopd_vl.core import Source, fused_plan_loss, item_count, rows_to_keep, token_scale
from dopd_vl.evaluation.accuracy import predict, summarise, why_unscored
from dopd_vl.evaluation.generation import bare_policy, ignored_settings
from dopd_vl.evaluation.verifiers import Verdict
from dopd_vl.models import forget_image_positions, image_token_ids
from dopd_vl.objectives import OBJECTIVES, Decision, Objective, Scores
from dopd_vl.objectives.base import POLICIES, Requirements, needs_teacher
from dopd_vl.objectives.common import PLAIN_STUDENT
from dopd_vl.objectives.task_reward import with_task_reward
from dopd_vl.run_folder.kept_rollouts import KeptRollouts, keep_rollouts
from dopd_vl.run_folder.model_card import write_card
from dopd_vl.served.protocols import with_one_pad_an_image
from dopd_vl.served.server import BadAnswer, RequestRefused, ServerGone
from dopd_vl.served.teacher import ServedTeacher
from dopd_vl.train_config import TrainConfig
from dopd_vl.training.arguments import DopdConfig, dtype_of_teacher
from dopd_vl.training.checks import (
    check_quantised,
    check_requirements,
    check_same_ids,
    check_shards,
    choose_metric_to_stop_by,
    token_ids,
)
from dopd_vl.training.data_checks import check_columns, check_rows, check_steps, shows_images
from dopd_vl.training.freezing import freeze, keep_adapters_out
from dopd_vl.training.metrics import TokenSums, add_rollouts, add_teachers, token_metrics, verdict_on
from dopd_vl.training.policies import Policies, Scored
from dopd_vl.training.sharding import TrainerModels
from dopd_vl.training.step_batch import KeptHidden, StepBatch
from dopd_vl.training.student_copies import CopiesAlongTheRun, StudentCopies, check_copies
from dopd_vl.training.teachers import (
    DEFAULT,
    TEACHER,
    RandomStates,
    Teacher,
    TeacherLost,
    Teachers,
    compare,
    served_needs,
)
from dopd_vl.training.trackers import RolloutTables
from dopd_vl.views import Refusal, View, ViewProcessor, bounded_views, processor_for
from dopd_vl.views.rollouts import (
    OWN_VIEW,
    ROLLOUT_VIEWS,
    SIBLING_VIEW,
    RenderedBatch,
    ViewRenderer,
    pad_responses,
    render_batch,
    render_with_rollouts,
    right_rollouts_to_show,
    trajectories,
)

COLUMNS = ["id", "prompt", "images", "answer", "task", "source", "privileged", "illusion_score"]
"""of a privileged data set"""


class DopdTrainer(DistillationTrainer):
    """Distils a teacher into a student on the student's own rollouts, by any objective.

    Args:
        model: the student, as TRL takes it: a folder, a hub id or a model.
        teacher_model: the larger, frozen teacher, likewise, or one that a server runs: its address or a
            `ServedTeacher`. Its vocabulary must be the student's. Where there are `teachers` it may be left out.
        args: a `DopdConfig`.
        train_dataset: a privileged data set (columns `id`, `prompt`, `images`, `answer`, `task`, `privileged`, ...).
        eval_dataset: another, or several by name, scored by its tasks' verifiers at each evaluation.
        objective: what is taught; default `Dopd()`. Any object with `sources` and `decide`.
        view_processor: renders examples for these models; default: chosen by the student's own config.
        teachers: further teachers by name, each for a part of the data; `teacher_model` teaches the rest.

    The others are those of `trl.DistillationTrainer`; `tools` are refused. A model that is given by its name is loaded
    as by `dopd-vl train`, the student in float32 and the teacher in bfloat16 on a GPU, unless `model_init_kwargs` and
    `teacher_model_init_kwargs` say otherwise.

    Raises:
        UserError: a data set lacks columns, such as one of prompts alone (`privileged.without_privilege` makes them),
            or a row cannot be shown or scored; the message names the row and its column.
    """

    _tag_names = ["trl", "distillation", "dopd"]  # noqa: RUF012 - TRL's own form
    _name = "DOPD"

    args: DopdConfig
    model: PreTrainedModel
    objective: Objective

    def __init__(
        self,
        model: str | PreTrainedModel,
        teacher_model: str | PreTrainedModel | ServedTeacher | None = None,
        args: DopdConfig | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        objective: Objective | None = None,
        view_processor: ViewProcessor | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: PeftConfig | None = None,
        tools: list[Callable[..., Any]] | None = None,
        teachers: Mapping[str, Teacher] | None = None,
    ):
        args = args or DopdConfig(TrainConfig.output_dir)
        if isinstance(train_dataset, Sized):
            check_steps(args, len(train_dataset), args.world_size, "train_dataset")
        if tools:
            raise UserError("tools: rollouts call no tools")
        for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset)):
            check_columns(dataset, name)
            check_rows(dataset, name)
        choose_metric_to_stop_by(args, callbacks or [], eval_dataset)
        if processing_class is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            of_student: Any = args.model_init_kwargs or {}
            processing_class = AutoProcessor.from_pretrained(
                name,
                revision=of_student.get("revision") or "main",
                padding_side="left",
                trust_remote_code=args.trust_remote_code,
            )
        tokenizer: Any = processing_class
        if isinstance(processing_class, ProcessorMixin):
            tokenizer = processing_class.tokenizer
        self.objective = objective if objective is not None else OBJECTIVES["dopd"]()
        self.teachers, in_process = Teachers.given(teacher_model, teachers or {})
        if not needs_teacher(self.objective):
            self.teachers = Teachers()
        for policy, given in in_process.items():
            name = given if isinstance(given, str) else given.config._name_or_path
            of_teacher: Any = args.teacher_model_init_kwargs or {}
            revision = of_teacher.get("revision") or (args.teacher_model_revision if policy == DEFAULT else None)
            key = "teacher_model" if policy == DEFAULT else policy.replace(":", "s.")
            check_same_ids(tokenizer.get_vocab(), token_ids(name, args.trust_remote_code, revision), key)
        own_teacher = in_process.pop(DEFAULT, None)
        self.requirements = Requirements.of(self.objective)
        self.resumed_from: Path | None = None
        """the checkpoint that this run goes on from"""
        # TRL would spread a model over every GPU that the process sees.
        for loaded, key, dtype in (
            (model, "model_init_kwargs", "float32"),
            (own_teacher, "teacher_model_init_kwargs", dtype_of_teacher()),
        ):
            if isinstance(loaded, str):
                setattr(args, key, {"device_map": None, "dtype": dtype, **(getattr(args, key) or {})})
        if peft_config is not None:
            peft_config = keep_adapters_out(peft_config, args.freeze)
        super().__init__(
            model=model,
            teacher_model=own_teacher,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            # Before whatever marks a checkpoint as whole.
            callbacks=[CopiesAlongTheRun(self), RolloutTables(self), *(callbacks or [])],
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
        )
        freeze(self.model, args.freeze)
        check_shards(args.shard_teacher, self.accelerator.num_processes, self.is_deepspeed_enabled)
        further = {policy: self._load_teacher(policy, given) for policy, given in in_process.items()}
        teachers_here = [self.teacher_model, *further.values()]
        check_quantised(self.model, teachers_here, self.is_fsdp_enabled, self._dist.zero_stage)
        self.models = TrainerModels(self, args.shard_teacher, further)
        config = self.models.bare("student").config
        template_kwargs: Any = self.chat_template_kwargs
        views = view_processor or processor_for(config, processing_class, args.max_prompt_length, template_kwargs)
        shown = bounded_views(views, args, args)
        self.views = shown["student"]
        self.views.keep_bounds()
        self._check_served()
        self._forbid_tokens(image_token_ids(config))
        if not self.use_vllm:
            # A student that diverged: drawing from NaN ends the process, and on a GPU without a word of where.
            asked: Any = args.generation_kwargs or {}
            self.generation_config.remove_invalid_values = asked.get("remove_invalid_values", True)
        if (ignored := ignored_settings(self.models.bare("student"))) and self.accelerator.is_main_process:
            warnings.warn(
                f"the student's own generation_config is ignored ({ignored}): rollouts and evaluations are drawn from "
                "the bare policy; generation_kwargs can ask for more",
                stacklevel=2,
            )
        self.policies = self._policies()
        # Where no larger model teaches, the student that does is the teacher, and sees what a teacher is to see.
        taught = "teacher" in self.policies.copies.policies
        of_student = args.copy_variant if taught else args.teacher_variant
        variants = dict.fromkeys(POLICIES, of_student) | {"teacher": args.teacher_variant}
        student_variant = self.requirements.shown_to_student(args.student_variant)
        others: Any = train_dataset if isinstance(train_dataset, Sized) else ()
        of_policies = dict.fromkeys(POLICIES, shown["copy" if taught else "teacher"]) | {"teacher": shown["teacher"]}
        self.renderer = ViewRenderer(self.views, variants, student_variant, others, of_policies)
        reads_images = self.views.reads_images
        check_requirements(
            self.objective, args.num_generations, reads_images, train_dataset, args.student_variant, args.task_reward
        )
        self.refusals: list[Refusal] = []
        self.refused_before = 0
        """refusals of this process before the checkpoint that it goes on from"""
        self.kept_rollouts = KeptRollouts()
        self._empty_steps: int | None = 0
        """steps since the run began that no rank had a usable example for; None once one had"""
        self._told_of_undecided = False
        self._told_of_unscored: set[str] = set()
        self._decision: Decision | None = None
        self._sums = TokenSums()

    def _policies(self) -> Policies:
        args, needs, policies = self.args, self.requirements, {source.policy for source in self.objective.sources()}
        if TEACHER in policies and not self.teachers.policies:
            raise ValueError(f"objective {self.objective.name!r} needs a teacher_model")
        check_copies(policies, self.models.has_adapters, self.models.zero_stage)
        copies = StudentCopies(self.models.bare("student"), policies, needs.average_rate, needs.average_every)
        return Policies(
            self.models,
            self.views,
            copies,
            batch_size=args.scoring_batch_size or args.per_device_train_batch_size,
            top_k=max(args.logged_top_k, getattr(self.objective, "top_k", 0)),
            chunk_size=None if args.logits_chunk_size == "auto" else args.logits_chunk_size,
            share_prompts=args.share_prompts and args.num_generations > 1,
            store="cpu" if args.offload_scores else None,
            teachers=self.teachers,
        )

    def _load_teacher(self, policy: str, given: str | PreTrainedModel) -> PreTrainedModel:
        """A teacher beside TRL's own, loaded as that one is."""
        if isinstance(given, str):
            asked: Any = {**cast(dict[str, Any], self.args.teacher_model_init_kwargs or {})}
            asked.pop("quantization_config", None)  # of the default teacher
            own = {"device_map": None, "dtype": dtype_of_teacher(), "trust_remote_code": self.args.trust_remote_code}
            its = self.teachers.others[policy.partition(":")[2]].init_kwargs
            given = create_model_from_path(given, **{**own, **asked, **its})
        sizes = [model.config.get_text_config().vocab_size for model in (self.model, given)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"a teacher's vocabulary has {sizes[1]} entries, the student's {sizes[0]}")
        return given

    def _check_served(self) -> None:
        """Served teachers can give what the objective needs, and have been compared with the student."""
        if not self.teachers.served:
            return
        vocabulary = self.views.config.get_text_config().vocab_size
        needs = served_needs(self.objective, self.args.num_generations, self.args.logged_top_k, vocabulary)
        if needs.cut and self.accelerator.is_main_process:
            warnings.warn(
                f"objective {self.objective.name!r} compares whole distributions with the teacher's: of a served one "
                f"it takes the {needs.top_k} likeliest tokens, and all others as one (top_{needs.top_k}_mass says "
                "what the former hold)",
                stacklevel=2,
            )
        for policy, served in self.teachers.served.items():
            longest = served.settings.timeout + served.settings.wait
            if self.accelerator.num_processes > 1 and longest >= self.args.ddp_timeout:
                raise ConfigurationError(
                    f"model.server.wait: {served.settings.wait:g} s, and {served.settings.timeout:g} s that an answer "
                    f"may take, are no less than the {self.args.ddp_timeout} s that processes wait for each other "
                    "(trl.ddp_timeout): they would end without a checkpoint"
                )
            told = compare(served, self.views, needs, shows_images(self.train_dataset, self.teachers, policy))
            if told is not None and self.accelerator.is_main_process:
                warnings.warn(told, stacklevel=2)

    def teacher_names(self) -> list[str]:
        """What the teachers are called: a folder or hub id, or the name that a server gives its model."""
        served, local = self.teachers.served, self.models.teachers
        return [
            served[policy].model if policy in served else self.models.bare(policy).config._name_or_path
            for policy in self.teachers.policies
            if policy in served or policy in local
        ]

    @property
    def refused(self) -> int:
        """Refusals of this process since the run began."""
        return self.refused_before + len(self.refusals)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; also takes up again what a checkpoint of TRL's does not hold.

        Raises:
            UserError: no example of the run, or of its first pass over the data, can be learned from.
        """
        found = get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        self.resumed_from = Path(found) if found else None
        self._empty_steps = None if found else 0
        try:
            result = super().train(resume_from_checkpoint, *args, **kwargs)
        except TeacherLost:
            self._save_last_step()
            raise
        if self._empty_steps:
            reason = self.refusals[0].reason if self.refusals else "no rollout has a token"
            raise UserError(
                f"none of the examples of {self._empty_steps} steps can be learned from; the first: {reason}"
            )
        return result

    def _save_last_step(self) -> None:
        """A checkpoint as the last whole step left it, where its own schedule has not written one."""
        step = self.state.global_step
        folder = checkpoint_folder(Path(str(self.args.output_dir)), step)
        if step == 0 or self.args.save_strategy == "no" or folder.exists():
            return
        self._random_states.restore()
        self._save_checkpoint(self.model, trial=None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def evaluate(
        self,
        eval_dataset: Dataset | Mapping[str, Dataset] | str | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Greedy accuracy by the tasks' verifiers on every variant of `eval_variants`, shared among ranks.

        A metric that there was nothing to measure by is left out, and a warning says why.

        Args:
            eval_dataset: in place of the trainer's own; of several, by name, each is scored with its name behind the
                prefix. Or the name of one of the trainer's own.

        Raises:
            UserError: while it trains, nothing is scored by which `metric_for_best_model` is to choose.
        """
        own: Any = self.eval_dataset
        dataset: Any = (
            own if eval_dataset is None else own[eval_dataset] if isinstance(eval_dataset, str) else eval_dataset
        )
        if dataset is None:
            raise ValueError("evaluation needs an eval_dataset")
        check_columns(dataset, "eval_dataset")
        if isinstance(dataset, Mapping):
            scored: dict[str, float] = {}
            for name, part in dataset.items():
                scored |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return scored
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        is_stream = not isinstance(dataset, Sized)
        places: Any = islice(dataset, rank, None, world) if is_stream else range(rank, len(dataset), world)
        mine = [place if is_stream else dataset[place] for place in places]
        length = self.args.eval_max_completion_length or self.args.max_completion_length or 512
        metrics: dict[str, float] = {}
        for number, variant in enumerate(self.args.eval_variants):
            with self.models.whole_student() as model, self.models.generating():
                predictions, refused = predict(
                    model, self.views, mine, variant, length, self.args.per_device_eval_batch_size
                )
            self._tell_of_undecided((p.id, p.undecided) for p in predictions)
            predictions, refused = gather_object(predictions), gather_object(refused)
            total = summarise(predictions, len(refused))
            prefix = metric_key_prefix if number == 0 else f"{metric_key_prefix}_{variant}"
            measured = {name: getattr(total, name) for name in ("accuracy", "entropy", "mean_tokens", "clipped")}
            counted = {name: getattr(total, name) for name in ("undecided", "unscored", "refused")}
            metrics |= {
                **{f"{prefix}_{name}": value for name, value in measured.items() if value is not None},
                **{f"{prefix}_{name}": float(count) for name, count in counted.items() if count},
                **{f"{prefix}_accuracy/{source}": value for source, value in total.by_source.items()},
            }
            if total.accuracy is None:
                self._tell_of_unscored(f"{prefix}_accuracy", variant, why_unscored(predictions, refused))
        self.models.bare("student").eval()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- one optimizer step: views, rollouts, scores, plan ----------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.teachers.served:
            self._random_states = RandomStates()
        with self.policies.shared_features():
            return self._roll_out_and_score(inputs)

    def _roll_out_and_score(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        group = self.args.num_generations
        sources = self.objective.sources()
        fixed = [source for source in sources if source.view not in ROLLOUT_VIEWS]
        lessons = self.requirements.lessons
        learned_on = [Source("student", lesson.view) for lesson in lessons]
        given = [source for source in learned_on if source.view not in ROLLOUT_VIEWS]
        rendered = render_batch(self.renderer, inputs, [*dict.fromkeys([PLAIN_STUDENT, *fixed, *given])], group)
        self.refusals += rendered.refusals
        owner = self._owners(inputs, rendered)
        plain_views = rendered.views[PLAIN_STUDENT]
        forget_image_positions(self.models.bare("student"))
        with self.models.whole_for_rollouts():
            # vLLM draws whole groups; otherwise only what is learned on is drawn, once for all of its lessons.
            drawn = 1 if self.use_vllm else len(lessons)
            _, responses, _, _, _ = self._generate(plain_views[::drawn])
        if len(lessons) > 1:
            rollouts, longest = responses[:: len(lessons) // drawn], self.args.max_completion_length or 512
            responses = trajectories(lessons, inputs, rollouts, self.views, longest)
        device = self.accelerator.device
        response_ids, response_mask = (t.to(device) for t in pad_responses(responses, self._tokenizer.pad_token_id))
        response_mask &= rendered.usable.to(device)[:, None]

        texts = self._tokenizer.batch_decode(responses, skip_special_tokens=True)
        judged = [
            Verdict(None) if b % len(lessons) else verdict_on(text, example)
            for b, (text, example) in enumerate(zip(texts, inputs, strict=True))
        ]
        verdicts = [verdict.right for verdict in judged]
        self._tell_of_undecided((str(e["id"]), v.undecided) for e, v in zip(inputs, judged, strict=True))
        usable = response_mask.any(dim=-1).tolist()
        shown = right_rollouts_to_show([v if u else None for v, u in zip(verdicts, usable, strict=True)], group)
        views = dict(rendered.views)
        asked = {source.view for source in (*sources, *learned_on)}
        prompts = self.renderer, inputs, plain_views, texts
        if SIBLING_VIEW in asked:
            by_sibling, shown = render_with_rollouts(SIBLING_VIEW, *prompts, shown, sources)
            views |= by_sibling
        if OWN_VIEW in asked:
            itself = [b - b % len(lessons) for b in range(len(inputs))]
            by_itself, _ = render_with_rollouts(OWN_VIEW, *prompts, itself, [*sources, *learned_on])
            views |= by_itself
        student_views = [views[learned_on[b % len(lessons)]][b] for b in range(len(inputs))]

        # One process keeps some rollouts to look at, with their scores.
        most = self.args.rollouts_to_keep if self.accelerator.is_main_process else 0
        chosen = [row for row, takes_part in enumerate(usable) if takes_part and row % len(lessons) == 0][:most]
        token_mask = response_mask
        if not self.requirements.needs_scores and not self.teachers.served:  # which have nothing but scores
            token_mask = torch.zeros_like(response_mask)
            token_mask[chosen] = response_mask[chosen]
        scored = self._score({source: views[source] for source in sources}, responses, token_mask, owner, inputs)
        scores = Scores(
            policies={source: scored[source].scores for source in sources},
            response_ids=response_ids,
            response_mask=response_mask,
            group=torch.arange(len(inputs), device=device) // group,
            correct=torch.tensor([math.nan if v is None else float(v) for v in verdicts], device=device),
            pairs={pair: self.policies.measure(pair, scored, response_mask) for pair in self.requirements.pairs},
            has_sibling=torch.tensor([other is not None for other in shown], device=device),
            lesson=torch.arange(len(inputs), device=device) % len(lessons),
        )
        self._decision = decision = with_task_reward(self.objective.decide(scores), scores, self.args.task_reward)
        self._log_rollouts(judged, scores, token_mask)
        self.kept_rollouts = keep_rollouts(chosen, inputs, views, responses, texts, verdicts, scores, decision)
        if not self.teachers.is_plain:
            top_k = min(policy.top_k_ids.shape[-1] for policy in scores.policies.values())
            parts = self._tokens_of_teachers(scores, owner)
            add_teachers(self._sums, parts, scores, verdicts, token_mask)
            plan = self.teachers.shared_out(decision.plan, owner.to(device), top_k)
            self._decision = decision = replace(decision, plan=plan, parts={**decision.parts, **parts})

        # Of each policy learning gets what `score_tokens` kept, and hidden states only where those do not do.
        plan = decision.plan
        needed = {source: rows & response_mask for source, rows in rows_to_keep(plan, scores.policies).items()}
        kept = {}
        for source, rows in needed.items():
            hidden, places = scored[source].hidden, scored[source].rows
            assert hidden is not None, source
            kept[source] = KeptHidden.of(hidden, rows.to(hidden.device), places)
        batch = StepBatch(
            response_ids=response_ids,
            response_mask=response_mask,
            places=torch.arange(len(inputs)),
            views=student_views,
            scale=token_scale(response_mask, plan.reduction),
            plan=plan,
            parts=decision.parts,
            scores={source: scores.policies[source] for source in plan.sources() if source in scores.policies},
            hidden=kept,
        )
        return batch.pack(items=self.accelerator.gather(item_count(response_mask, plan.reduction)).sum())

    def _owners(self, inputs: list[dict[str, Any]], rendered: RenderedBatch) -> Tensor:
        """The place of each rollout's teacher, `[B]`. An example that has none is refused."""
        if self.teachers.is_plain:
            return torch.zeros(len(inputs), dtype=torch.long)
        owners = [self.teachers.of(example) for example in inputs]
        for b, owner in enumerate(owners):
            if owner is None and bool(rendered.usable[b]):
                rendered.usable[b] = False
                reason = f"no teacher teaches source {inputs[b].get('source')!r} or task {inputs[b].get('task')!r}"
                if not any(refusal.id == inputs[b]["id"] for refusal in self.refusals[-len(inputs) :]):
                    self.refusals.append(Refusal(str(inputs[b]["id"]), reason))
        return torch.tensor([owner or 0 for owner in owners])

    def _score(
        self,
        asked: Mapping[Source, list[View]],
        responses: list[list[int]],
        mask: Tensor,
        owner: Tensor,
        inputs: list[dict[str, Any]],
    ) -> dict[Source, Scored]:
        """`Policies.score_all`; what a served teacher of one rank does wrong ends all of them, at the same place."""
        lost: UserError | None = None
        scored: dict[Source, Scored] = {}
        try:
            examples = [str(example["id"]) for example in inputs]
            scored, waited = self.policies.score_all(asked, responses, mask, owner, examples)
        except (ServerGone, RequestRefused, BadAnswer) as error:
            lost, waited = error, math.nan
        if not self.teachers.served:
            return scored
        of_ranks = self.accelerator.gather(torch.tensor([waited], device=self.accelerator.device))
        if of_ranks.isnan().any():
            told = next(text for text in gather_object([str(lost or "")]) if text)
            stays = "whole checkpoints stay, go" if self.state.global_step else "go"
            raise TeacherLost(f"{told}; {stays} on with --resume true") from lost
        self._metrics["train"]["teacher_wait_seconds"].append(of_ranks.mean().item())
        return scored

    def _tokens_of_teachers(self, scores: Scores, owner: Tensor) -> dict[str, Tensor]:
        """The tokens that each of several teaches, `[B, N]`, as parts of the step."""
        policies, mask = self.teachers.policies, scores.response_mask
        places = [(owner == place).to(mask.device).unsqueeze(-1) for place in range(len(policies))]
        return {policy: mask & own for policy, own in zip(policies, places, strict=True)} if len(policies) > 1 else {}

    # ---- one slice of it: learning ----------------------------------------------------------------------------------

    def _compute_loss(
        self, unwrapped_student: PreTrainedModel, inputs: dict[str, Any], num_items_in_batch: Tensor | int
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert self._decision is not None
        batch = StepBatch.unpack(inputs, self._decision)
        ids, mask = batch.response_ids, batch.response_mask
        hidden = self.policies.hidden_states(
            "student", batch.views, batch.responses, shared=self._learns_from_shared_prompts()
        )
        with self.models.whole_heads(["student", *(source.policy for source in batch.hidden)]):
            student = self.policies.projection(PLAIN_STUDENT, hidden, constant=False)
            projections = {
                source: self.policies.projection(source, kept.whole(mask.device), acting=False)
                for source, kept in batch.hidden.items()
            }
            taught = fused_plan_loss(
                batch.plan,
                student,
                projections,
                ids,
                mask,
                batch.scores,
                batch.scale / num_items_in_batch,
                self.policies.chunk_size,
            )
            token_loss = taught.token_loss.detach()
            self.kept_rollouts.learned(batch.places.tolist(), token_loss, student, ids, mask)
        self._sums.add_loss(token_loss, mask, batch.parts)
        self._sums.add("kept_mass/student", taught.kept_mass.nansum(), (~taught.kept_mass.isnan()).sum())
        return taught.loss, taught.entropy.nansum(), (~taught.entropy.isnan()).sum()

    def _learns_from_shared_prompts(self) -> bool:
        """Checkpointed layers keep no keys and values, and a sharded module runs once between forward and backward."""
        whole = not self.models.sharded("student") and not self.args.gradient_checkpointing
        return whole and self.policies.shares_prompts("student")

    # ---- logging -----------------------------------------------------------------------------------------------------

    def _log_rollouts(self, verdicts: list[Verdict], scores: Scores, scored: Tensor) -> None:
        assert self._decision is not None
        correct = [verdict.right for verdict in verdicts]
        add_rollouts(self._sums, scores, self._decision, correct, self.args.logged_top_k, scored)
        values = {
            **self._decision.values,
            "refused_examples": float(self.refused),
            "usable_rollouts": scores.response_mask.any(dim=-1).float().mean().item(),
            "undecided_rollouts": sum(bool(verdict.undecided) for verdict in verdicts) / len(verdicts),
        }
        of_ranks = self.accelerator.gather(torch.tensor([list(values.values())], device=self.accelerator.device))
        means = dict(zip(values, of_ranks.nanmean(0).tolist(), strict=True))
        for name, value in means.items():
            self._metrics["train"][name].append(value)
        self._count_empty_steps(means["usable_rollouts"] > 0)

    def _tell_of_undecided(self, reasons: Iterable[tuple[str, str]]) -> None:
        """One line of this process about the first response whose verifier came to no verdict; rows count them all."""
        first = next(((identifier, reason) for identifier, reason in reasons if reason), None)
        if first is None or self._told_of_undecided:
            return
        self._told_of_undecided = True
        warnings.warn(
            f"example {first[0]!r}: a response counts as wrong because its verifier came to no verdict ({first[1]}); "
            "undecided_rollouts has the share of such rollouts, eval_undecided the number of such responses",
            stacklevel=2,
        )

    def _tell_of_unscored(self, metric: str, variant: str, why: str) -> None:
        """One line a run about an accuracy that there is nothing to measure by."""
        chosen_by = self.args.metric_for_best_model
        if self.is_in_train and chosen_by is not None and metric == f"eval_{chosen_by.removeprefix('eval_')}":
            raise UserError(
                f"metric_for_best_model: {chosen_by} cannot be measured: {why}; name another metric, such as "
                "'entropy' with greater_is_better=False, or give an eval_dataset that is scored"
            )
        if metric not in self._told_of_unscored and self.accelerator.is_main_process:
            self._told_of_unscored.add(metric)
            warnings.warn(f"{metric} is not scored (variant {variant}): {why}", stacklevel=2)

    def _count_empty_steps(self, usable: bool) -> None:
        """A step without a usable example has no loss, and the run goes on: unless no example of the data is usable."""
        if usable or self._empty_steps is None:
            self._empty_steps = None
            return
        self._empty_steps += 1
        if isinstance(self.train_dataset, Sized) and self._empty_steps * self._prompts >= len(self.train_dataset):
            self.control.should_training_stop = True

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            names, sums = self._sums.vector()
            if names:
                total = self.accelerator.reduce(torch.tensor(sums, device=self.accelerator.device), reduction="sum")
                logs = {**logs, **token_metrics(names, total.tolist())}
            self._sums.clear()
        super().log(logs, start_time)

    # ---- seams of TRL -----------------------------------------------------------------------------------------------

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Beside the checkpoints and before a push to the hub."""
        if self.is_world_process_zero():
            write_card(Path(str(self.args.output_dir)), self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, with a card."""
        super().save_model(output_dir, _internal_call)
        if not _internal_call and self.is_world_process_zero():
            write_card(Path(output_dir or str(self.args.output_dir)), self)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns: Any = COLUMNS

    def get_train_dataloader(self) -> DataLoader:
        args, dataset = self.args, self.train_dataset
        if not isinstance(dataset, IterableDataset):
            return super().get_train_dataloader()
        rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps
        stream = repeat_iterable_dataset(
            dataset.shuffle(seed=args.seed) if self.shuffle_dataset else dataset,
            mini_repeat_count=args.num_generations,
            batch_size=rollouts * self.accelerator.num_processes // args.num_generations,
            repeat_count=args.gradient_accumulation_steps,
        )
        return self._get_dataloader(stream, "Training", rollouts, is_training=True)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        args = self.args
        source: Any = self.train_dataset if dataset is None else dataset
        prompts = self._prompts
        sampler = RepeatSampler(
            data_source=source,
            mini_repeat_count=args.num_generations,
            batch_size=prompts,
            repeat_count=args.gradient_accumulation_steps,
            shuffle=bool(self.shuffle_dataset),
            seed=args.seed,
        )
        if self.resumed_from is not None:
            # Each pass over the data draws its order from the last one's generator, which no checkpoint holds.
            state = TrainerState.load_from_json(str(self.resumed_from / TRAINER_STATE_NAME))
            for _ in range(state.global_step // max(1, len(source) // prompts)):
                next(iter(sampler), None)
        return sampler

    @property
    def _prompts(self) -> int:
        """Of an optimizer step, over all ranks."""
        args = self.args
        rollouts = args.per_device_train_batch_size * self.accelerator.num_processes * args.gradient_accumulation_steps
        return rollouts // args.num_generations

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Of a run that was killed after its last step only what comes then is left; TRL would take one more step.
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[View]) -> tuple[list[list[int]], list | None, dict[str, Any]]:
        """The plain views' own ids and image features, for `_generate`."""
        prompt_ids = [view.prompt_ids for view in prompts]
        batch = self.views.collate(prompts, [[] for _ in prompts], self._tokenizer.pad_token_id)
        fields: dict[str, Any] = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in fields:
            fields["mm_token_type_ids"] = [view.mm_token_type_ids or [0] * len(view.prompt_ids) for view in prompts]
        images = [view.images or None for view in prompts]
        return prompt_ids, images if any(images) else None, fields

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: list | None, multimodal_fields: dict[str, Any], *args: Any
    ) -> list[list[int]]:
        if images is not None and self.use_vllm and self.vllm_mode == "colocate":
            image_token = self.models.bare("student").config.image_token_id
            prompts = zip(prompt_ids, images, strict=True)
            prompt_ids = [with_one_pad_an_image(ids, len(shown or []), image_token) for ids, shown in prompts]
        student = self.models.wrapped("student")
        was_training = student.training
        student.train(was_training and self.args.rollout_dropout)
        try:
            with bare_policy(self.models.bare("student")), nullcontext() if self.use_vllm else self.models.generating():
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *args)
        finally:
            student.train(was_training)

    def _forbid_tokens(self, ids: list[int]) -> None:
        if not ids:
            return
        if self.use_vllm:
            # vLLM has no suppress_tokens; a bias of -100 is as good.
            asked = self.vllm_generation.generation_kwargs
            bias = {**asked.get("logit_bias", {}), **{token: -100.0 for token in ids}}
            self.vllm_generation.generation_kwargs = {**asked, "logit_bias": bias}
        else:
            asked_for = self.generation_config.suppress_tokens or []
            self.generation_config.suppress_tokens = list(dict.fromkeys([*asked_for, *ids]))
