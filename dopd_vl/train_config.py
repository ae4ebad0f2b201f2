"""The keys of `dopd-vl train --config FILE`."""

import math
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from dopd_vl.common.configuration import check_at_least, check_shares, settings_of
from dopd_vl.common.errors import ConfigurationError, nearest
from dopd_vl.common.http import check_address, is_address

DEFAULT_VARIANT = "default"
"""The variant that fits an example: boxes with labels where it has any, else step-wise hints (the paper's choices)."""


@dataclass
class LoraSettings:
    """LoRA (arXiv 2106.09685) through peft; full fine-tuning without it."""

    r: int = 32
    """The rank of each adapter."""
    alpha: int = 64
    """What an adapter adds to its layer is scaled by alpha / r."""
    dropout: float = 0.0
    """The share of an adapter's inputs that is dropped while it learns."""
    target_modules: str = "all-linear"
    """The names of the modules that get adapters, with commas between them, or "all-linear" for every linear layer but
    the head."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "r", "alpha", where="model.lora.")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.lora.dropout={self.dropout} must be at least 0 and below 1")

    @property
    def modules(self) -> list[str]:
        """The names, or "all-linear" alone."""
        return [name.strip() for name in self.target_modules.split(",")]


PARTS = ("vision", "projector", "language")
"""Of a vision-language model: its tower, the mergers from there to the language model, and that with its head."""


def check_freeze(parts: Collection[str], where: str = "model.") -> None:
    """Raises: ConfigurationError: one of these is no part, or all are frozen."""
    for part in parts:
        if part not in PARTS:
            raise ConfigurationError(f"{where}freeze: no part {part!r}, {nearest(part, PARTS)}")
    if set(parts) == set(PARTS):
        raise ConfigurationError(f"{where}freeze: leaves nothing to learn; leave one of {', '.join(PARTS)} out")


Quantization = Literal["8bit", "4bit"]
"""bitsandbytes' LLM.int8() (arXiv 2208.07339) and NF4 with double quantization (QLoRA, arXiv 2305.14314)."""


@dataclass
class TeacherSettings:
    """A teacher of a part of the data. An example is taught by the first teacher that names its source or its task, and
    by `model.teacher` where none does."""

    model: str = ""
    """The folder or hub id of this teacher, `nano:NAME`, or the address of a server."""
    sources: list[str] = field(default_factory=list)
    """It teaches the examples whose column `source` has one of these values."""
    tasks: list[str] = field(default_factory=list)
    """It teaches the examples whose column `task` has one of these values."""
    quantization: Quantization | None = None
    """The number of bits that it is loaded in, as by model.teacher_quantization."""
    name: str | None = None
    """The name that its server gives it. By default it is the first that the server lists."""
    key_env: str | None = None
    """The environment variable that holds its server's key; no server is sent another one's. By default it has none."""


@dataclass
class ServerSettings:
    """How served teachers are asked (docs/teachers.md)."""

    kind: Literal["auto", "vllm", "sglang"] = "auto"
    """Which program serves; "auto" asks it."""
    name: str | None = None
    """The name that the server gives its model. By default it is the first one that the server lists."""
    key_env: str | None = None
    """The environment variable that holds the server's key. By default the server has none."""
    concurrency: int = 64
    """Each process that trains has at most so many requests in flight."""
    timeout: float = 600.0
    """An answer may take so many seconds."""
    wait: float = 900.0
    """A server that does not answer is waited for so many seconds; then the run ends with a checkpoint."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "concurrency", where="model.server.")
        for name in ("timeout", "wait"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"model.server.{name}={getattr(self, name)} must be above 0 and finite")


@dataclass
class ModelSettings:
    """The student and its teacher: folders, hub ids, or `nano:NAME` for the shipped CPU-size models."""

    student: str = "nano:vision-student"
    """The model that learns: a folder, a hub id or `nano:NAME`."""
    teacher: str | None = "nano:vision-teacher"
    """The larger, frozen model: a folder, a hub id, `nano:NAME`, or the address of a server that runs it, as
    http://HOST:PORT. It may be null where the objective's teacher is the student itself."""
    teachers: dict[str, Any] = field(default_factory=dict)
    """Further teachers by a name of your choice, each with its model and the sources or tasks of the data that it
    teaches, e.g. `{math: {model: Qwen/Qwen3-8B, sources: [gsm8k]}}` (docs/teachers.md)."""
    server: ServerSettings = field(default_factory=ServerSettings)
    quantization: Quantization | None = None
    """The student is loaded in so many bits (bitsandbytes), and adapters are trained on it (QLoRA); this needs
    model.lora. By default it is loaded as it is."""
    teacher_quantization: Quantization | None = None
    """The teacher is loaded in so many bits (bitsandbytes). By default it is loaded as it is."""
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of the teacher's weights; "auto" is bfloat16 on a GPU and float32 on a CPU. The student's weights are
    float32, with bf16 autocast on a GPU."""
    attn_implementation: str | None = None
    """How attention is computed, e.g. "sdpa" or "flash_attention_2". By default transformers chooses."""
    trust_remote_code: bool = False
    """Run Python code that a model folder brings along."""
    lora: LoraSettings | None = None
    """Adapters are trained in place of the student's own weights. By default all of its weights are trained."""
    freeze: list[str] = field(default_factory=list)
    """Parts of a vision-language student that do not learn, with adapters or without: vision (the tower), projector
    (its mergers), language (the rest, head and all). By default all of them learn."""

    def __post_init__(self) -> None:
        check_freeze(self.freeze)
        if self.quantization is not None and self.lora is None:
            raise ValueError(
                f"model.quantization={self.quantization}: weights of so few bits do not learn, adapters on them do; "
                "give model.lora"
            )
        for name, given in self.teachers.items():
            if not str(name).isidentifier() or name == "default":
                raise ConfigurationError(
                    f"model.teachers: {name!r} is no name, which is of letters, digits and '_' (default is "
                    "model.teacher's)"
                )
            key = f"model.teachers.{name}"
            teacher = given if isinstance(given, TeacherSettings) else settings_of(TeacherSettings, given, key)
            if not teacher.model:
                raise ConfigurationError(f"{key}.model: none given")
            if not teacher.sources and not teacher.tasks:
                raise ConfigurationError(f"{key}: give the sources or the tasks of the data that it teaches")
            self.teachers[name] = teacher
            if is_address(teacher.model):
                check_address(teacher.model, f"{key}.model", f"{key}.key_env")
            if teacher.quantization is not None and is_address(teacher.model):
                raise ConfigurationError(f"{key}.quantization: a served teacher lies as its server loaded it")
        if is_address(self.teacher or ""):
            check_address(str(self.teacher), "model.teacher", "model.server.key_env")
        if self.teacher_quantization is not None and is_address(self.teacher or ""):
            raise ValueError("model.teacher_quantization: a served teacher lies as its server loaded it")

    def teacher_names(self) -> dict[str, str]:
        """Every teacher by its key, e.g. "model.teachers.math.model": a folder, a hub id or an address."""
        names = {} if self.teacher is None else {"model.teacher": self.teacher}
        return names | {f"model.teachers.{name}.model": teacher.model for name, teacher in self.teachers.items()}

    def in_process(self, with_teachers: bool = True) -> dict[str, str]:
        """The models that this process loads, by their keys: the student first, and teachers that no server runs."""
        teachers = self.teacher_names() if with_teachers else {}
        loaded = {key: name for key, name in teachers.items() if not is_address(name)}
        return {"model.student": self.student, **loaded}


@dataclass
class DataSettings:
    """Privileged data sets, as `dopd-vl prepare` writes them."""

    RENAMED: ClassVar = {"max_image_pixels": "is called max_pixels now"}

    train: str = ""
    """The folder of the examples to train on."""
    eval: str | None = None
    """The folder of held-out examples that are scored while training. By default none are."""
    eval_size: int | None = None
    """So many of the held-out examples are scored, from the front. By default all of them are."""
    max_prompt_length: int | None = None
    """An example whose prompt has more tokens than this in any view is passed over; no prompt is ever cut. By default
    there is no limit."""
    min_pixels: int | None = None
    """An image of fewer pixels is made larger, for every view alike. By default the model's own bound holds."""
    max_pixels: int | None = None
    """An image of more pixels is made smaller, for every view alike unless `privilege` says otherwise. The model's own
    bounds hold besides: Qwen3-VL's are 65,536 and 16 million pixels, 64 and 16,384 tokens."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "max_prompt_length", "min_pixels", "max_pixels", where="data.")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"data.min_pixels={self.min_pixels} is more than data.max_pixels={self.max_pixels}")


@dataclass
class PrivilegeSettings:
    """What the privileged views show; a student that is to be deployed never sees any of it."""

    RENAMED: ClassVar = {"learner_variant": "is called student_variant now"}
    VARIANTS: ClassVar = ("teacher_variant", "copy_variant", "student_variant")
    PIXELS: ClassVar = ("teacher_max_pixels", "copy_max_pixels", "student_max_pixels")

    teacher_variant: str = DEFAULT_VARIANT
    """What the teacher is shown: "default" (boxes with labels where an example has any, else step-wise hints), or one
    of docs/data.md: none, final_answer, hints, hints_executed, hint_summary, caption, box_label, box_caption, box_only,
    box_drawn, evidence_crop, masked_crop, zoomed, masked, degraded, half_resolution, augmented, wrong_hint, no_prompt,
    positive_feedback, negative_feedback, other_hints, other_hints_executed, other_box_label."""
    copy_variant: str = ""
    """What the student's copy is shown, which has the student's weights and supervises; where none is given, what
    "default" above means."""
    student_variant: str = ""
    """What the student is shown when it rolls out and learns; where none is given, "none". Anything else is only to
    analyse what comes of it. Give copy_variant with it: alone it would be what `student_variant` meant before, the
    variant of the copy."""
    teacher_max_pixels: int | None = None
    """The most pixels of an image that the teacher is shown, whatever its view. By default they are data.max_pixels."""
    copy_max_pixels: int | None = None
    """The most pixels of an image that the student's copy is shown in its privileged view. By default they are
    data.max_pixels."""
    student_max_pixels: int | None = None
    """The most pixels of an image that the student is shown, in evaluations and by whoever loads it later, too. By
    default they are data.max_pixels."""

    def __post_init__(self) -> None:
        check_at_least(1, self, *self.PIXELS, where="privilege.")
        if self.student_variant and not self.copy_variant:
            raise ValueError(
                "privilege.student_variant: is what the student itself sees when it rolls out and learns; what its "
                "privileged copy sees, which had this name before, is copy_variant. Give copy_variant, too, if the "
                "student is meant, or copy_variant instead"
            )

    def fill_in(self) -> None:
        """Whatever was not given becomes its default: only then is it known what was given."""
        self.copy_variant = self.copy_variant or DEFAULT_VARIANT
        self.student_variant = self.student_variant or "none"


@dataclass
class ObjectiveSettings:
    """What is taught."""

    name: str = "dopd"
    """What is taught, one of docs/methods.md: opd, opcd, exopd, uni-opd, sdft, opsd, sdpo, eopd, tip, vision-opd,
    va-opd, top-d, sa-opd, cal-opd, rp-opsd, s2vopd, opd-v, dapd, dopd, dopd-anchored, negative, self-plain."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of that objective, e.g. {beta_light: 0.5} for dopd. What is not named keeps its default."""


@dataclass
class TrainerSettings:
    """Keys under `training` that are arguments of `DopdConfig` as well, with the same defaults. A step is one optimizer
    step: per_device_train_batch_size * gradient_accumulation_steps rollouts on each device."""

    num_generations: int = 4
    """So many rollouts are drawn of each prompt."""
    max_steps: int = 200
    """The run has so many optimizer steps."""
    num_train_epochs: float | None = None
    """The run has so many passes over the data, in place of max_steps. By default max_steps counts."""
    learning_rate: float = 5e-6
    """The highest learning rate, from which the schedule begins once it is warm."""
    lr_scheduler_type: str = "cosine"
    """How the learning rate goes on after the warm-up, by transformers' names: cosine, linear, constant_with_warmup,
    ..."""
    warmup_steps: int = 0
    """The learning rate rises from 0 over so many steps."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """A gradient of a larger norm is scaled down to this one; 0 scales none."""
    per_device_train_batch_size: int = 8
    """Each device learns from so many rollouts at a time."""
    gradient_accumulation_steps: int = 1
    """The rollouts of a step are learned from in so many slices, one after another, each of
    per_device_train_batch_size."""
    max_completion_length: int = 2048
    """A rollout ends after so many tokens at the latest."""
    temperature: float = 1.0
    """The temperature at which rollouts are sampled. Distributions are compared at temperature 1."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass in place of keeping them: less memory, and one forward pass
    more."""
    bf16: bool | None = None
    """Run forward passes in bf16 by autocast. By default this is on where the GPU has it, and off on a CPU, which is
    slow in it unless it computes such products itself (AMX)."""
    logging_steps: int = 1
    """Metrics are logged every so many steps."""
    eval_steps: int = 50
    """The held-out examples are scored every so many steps; with 0 at each log."""
    save_steps: int = 50
    """A checkpoint is written every so many steps; with 0 only one, at the end."""
    save_total_limit: int = 2
    """So many checkpoints are kept. The best one so far is kept apart, in `best/`."""
    per_device_eval_batch_size: int = 32
    """Each device answers so many held-out examples at a time."""
    use_vllm: bool = False
    """Draw rollouts by vLLM (docs/vllm-and-deepspeed.md); its settings go under `trl`."""
    report_to: list[str] = field(default_factory=list)
    """The run also reports to these experiment trackers, e.g. [tensorboard, wandb] (docs/trackers.md)."""
    rollout_dropout: bool = False
    """Leave the student's dropout on while it rolls out, as TRL does. Without, rollouts come from the policy that is
    scored."""
    eval_variants: list[str] = field(default_factory=lambda: ["none"])
    """What the student is shown in evaluations, one after another; the first one chooses the best checkpoint."""
    eval_max_completion_length: int | None = None
    """A response in evaluations ends after so many tokens at the latest. By default it is max_completion_length."""
    scoring_batch_size: int | None = None
    """A forward pass that scores reads so many sequences. By default it is per_device_train_batch_size."""
    share_prompts: bool = True
    """Read a prompt once for all of its rollouts: in scoring, and in learning without gradient checkpointing. Models
    that keep a recurrent state never do."""
    logits_chunk_size: int | Literal["auto"] = "auto"
    """So many response tokens are projected to the vocabulary at a time; "auto" goes by the device
    (docs/performance.md)."""
    logged_top_k: int = 128
    """The K of the Top-K mass of each policy that is logged."""
    offload_scores: bool = False
    """Keep Top-K entries and hidden states in host memory between scoring and learning."""
    shard_teacher: bool = False
    """Keep 1/N of the teacher on each of N GPUs, and gather it layer by layer where it scores. This is not for
    DeepSpeed, whose ZeRO-3 does so anyway."""
    task_reward: float = 0.0
    """The weight of the verifier's verdict beside what the objective teaches (docs/methods.md); 0 leaves it out."""
    rollouts_to_keep: int = 2
    """At each log so many rollouts of the first process are written to rollouts.jsonl, with their routing."""


def check_sizes(settings: Any) -> None:
    """What no step can be made of, in `LoopSettings` or in a `DopdConfig`.

    Raises:
        ValueError: the message begins with the setting's name.
    """
    check_at_least(1, settings, "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")
    check_at_least(1, settings, "max_completion_length", "eval_max_completion_length", "scoring_batch_size")
    check_at_least(1, settings, "logged_top_k")
    if settings.logits_chunk_size != "auto":
        check_at_least(1, settings, "logits_chunk_size")
    check_at_least(
        0, settings, "rollouts_to_keep", "task_reward", "learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"
    )
    check_at_least(0, settings, "logging_steps", "eval_steps", "save_steps")
    if settings.max_steps == 0:
        raise ValueError("max_steps=0 trains nothing; give a number of steps, or -1 for num_train_epochs passes")
    if not 0 < settings.temperature < math.inf:
        raise ValueError(f"temperature={settings.temperature} must be above 0 and finite: rollouts are sampled")
    rollouts = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    if rollouts % settings.num_generations:
        raise ValueError(
            f"num_generations={settings.num_generations} does not divide the {rollouts} rollouts of a step on one "
            "device (per_device_train_batch_size * gradient_accumulation_steps)"
        )


def leave_length_to_epochs(settings: TrainerSettings, where: str = "") -> None:
    """Where epochs were given, `max_steps` becomes -1, which is TRL's way to say so.

    Raises:
        ValueError: steps were given as well; the message names both, each with `where` before it.
    """
    epochs, steps = settings.num_train_epochs, settings.max_steps
    if epochs is None:
        return
    if not 0 < epochs < math.inf:
        raise ValueError(f"{where}num_train_epochs={epochs} must be above 0 and finite")
    if steps not in (TrainerSettings.max_steps, -1):
        raise ValueError(f"{where}num_train_epochs={epochs} and {where}max_steps={steps}: give one of them")
    settings.max_steps = -1


def colocated_length(max_prompt_length: int | None, max_completion_length: int, given: int | None) -> int:
    """Tokens of the longest sequence that vLLM, in the trainer's process, must have room for.

    Left to itself it sets memory aside for the model's whole context: 28 GiB of keys and values for one of
    Qwen3-VL-2B's 262,144 tokens.

    Args:
        given: `trl.vllm_max_model_length`.

    Raises:
        ConfigurationError: it cannot be known, or what was given is too little.
    """
    if max_prompt_length is None:
        raise ConfigurationError(
            "data.max_prompt_length: give it; vLLM in the trainer's process (trl.vllm_mode: colocate) sets memory "
            "aside for the longest prompt and response"
        )
    longest = max_prompt_length + max_completion_length
    if given is not None and given < longest:
        raise ConfigurationError(
            f"trl.vllm_max_model_length: {given} is less than data.max_prompt_length and "
            f"training.max_completion_length together, {max_prompt_length} + {max_completion_length} tokens; leave it "
            "out, and it is their sum"
        )
    return given or longest


@dataclass
class LoopSettings(TrainerSettings):
    """The training loop, and what it leaves."""

    early_stopping_patience: int | None = None
    """The run ends after so many evaluations in a row without a higher held-out accuracy; this needs data.eval. By
    default it does not end early."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the weights in student/ and best/; checkpoints keep what training goes on with."""
    push_to_hub: str | None = None
    """The repository of the hub, "user/name", that student/ is pushed to at the end; it is made private if it is new
    (docs/hub.md). By default nothing is pushed."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "early_stopping_patience", where="training.")
        leave_length_to_epochs(self, "training.")


@dataclass
class HealthSettings:
    """When a run is said to go wrong (docs/health.md). Steps are optimizer steps."""

    on_alarm: Literal["say", "stop", "ignore"] = "say"
    """With "say", an alarm is one line on the terminal and in alarms.jsonl, each kind once a run; "stop" also ends the
    run with a checkpoint, and "ignore" looks for none."""
    window: int = 10
    """So many steps are averaged, and the last of these windows is compared with earlier ones."""
    patience: int = 20
    """It is an alarm when no rollout is right for so many steps, or a kind of token has all tokens or none for so
    long."""
    significance: float = 0.01
    """The chance that the rollouts of a run whose accuracy stands still ever look like a fall."""
    min_fall: float = 0.25
    """The share of its best rollout accuracy that a student must lose for an alarm, where another sign agrees."""
    min_fall_alone: float = 0.67
    """The share that it must lose where accuracy alone has moved."""
    gap_growth: float = 1.25
    """It is an alarm when the mean gap of teacher and copy is so many times its lowest; without a verifier, a
    collapse."""
    entropy_share: float = 0.2
    """It is an alarm when a student that is mostly wrong has less than this share of the entropy of its first
    window."""
    clipped_share: float = 0.9
    """It is an alarm when more than this share of the responses is cut at the length limit."""
    non_finite_steps: int = 1
    """It is an alarm when so many steps in a row have a NaN or infinite loss or gradient norm; fp16 scaling has single
    ones that do no harm."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "window", "patience", "non_finite_steps", where="health.")
        shares = ("significance", "min_fall", "min_fall_alone", "entropy_share", "clipped_share")
        check_shares(self, *shares, where="health.")
        if not self.gap_growth > 1.0:
            raise ValueError(f"health.gap_growth={self.gap_growth} must be above 1")


@dataclass
class TrainConfig:
    """Distil a teacher into a student on the student's own rollouts.

    See docs/tutorial.md and docs/methods.md.
    """

    output_dir: str = "runs/train"
    """The run folder, with config.yaml, metrics.jsonl, rollouts.jsonl, alarms.jsonl, checkpoints, best/ and
    student/."""
    seed: int = 0
    """Every random choice of the run is drawn from this number."""
    resume: bool = False
    """Go on from the last whole checkpoint of output_dir, or begin where there is none (docs/resume.md)."""
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    privilege: PrivilegeSettings = field(default_factory=PrivilegeSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    training: LoopSettings = field(default_factory=LoopSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    allow_code: bool = False
    """Run the programs that the student writes for tasks of code, with limits but without a security boundary
    (SECURITY.md)."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the chat template, for every view alike, e.g. enable_thinking: false for Qwen3."""
    trl: dict[str, Any] = field(default_factory=dict)
    """Any other field of `trl.DistillationConfig`, by its name there (docs/trl-settings.md)."""

    def __post_init__(self) -> None:
        self.privilege.fill_in()


def key_of(message: str, config: TrainConfig) -> str | None:
    """The key of the setting that another library's message is about: it says the setting's name, or quotes its value.

    None where it is about no key of `trl`, `training` or `model.lora.target_modules`.

    >>> key_of("'cosin' is not a valid SchedulerType", TrainConfig(training=LoopSettings(lr_scheduler_type="cosin")))
    'training.lr_scheduler_type'
    """
    settings = {f"training.{name}": value for name, value in asdict(config.training).items()}
    if config.model.lora is not None:
        settings["model.lora.target_modules"] = config.model.lora.modules
    for name, value in config.trl.items():
        settings[f"trl.{name}"] = value
        if isinstance(value, dict):
            settings |= {f"trl.{name}.{inner}": below for inner, below in value.items()}

    def says(text: object) -> bool:
        return isinstance(text, str) and bool(text and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", message))

    named = [key for key in settings if says(key.rpartition(".")[2])]
    quoted = [k for k, value in settings.items() if any(map(says, value if isinstance(value, list) else [value]))]
    return next(iter([*reversed(named), *reversed(quoted)]), None)


def in_todays_keys(saved: Any) -> Any:
    """What stood in a run folder's config.yaml, by today's keys, whichever version of this toolkit wrote it.

    Before `data.max_pixels` there was `data.max_image_pixels`. Before `privilege.copy_variant`, the variant of the
    student's copy was `student_variant` and the student's own `learner_variant`, and settings of `TrainerSettings` were
    given under `trl`, if at all. Trackers and epochs still were after that. Before `training.rollout_dropout`, rollouts
    were drawn with the adapters' dropout, if they had any. What `model` had no key for was done as the key's default
    says.
    """
    sections = ("privilege", "training", "trl")
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name), dict) for name in sections):
        return saved
    if isinstance(saved.get("data"), dict) and "max_image_pixels" in saved["data"]:
        data = dict(saved["data"])
        data["max_pixels"] = data.pop("max_image_pixels")
        saved = {**saved, "data": data}
    privilege, training, trl = (dict(saved[name]) for name in sections)
    model = saved.get("model")
    if isinstance(model, dict):
        saved = {**saved, "model": asdict(ModelSettings()) | model}
    lora = model.get("lora") if isinstance(model, dict) else None
    training.setdefault("rollout_dropout", isinstance(lora, dict) and lora.get("dropout", 0.0) != 0.0)
    if "num_train_epochs" in trl:
        training["num_train_epochs"] = trl.pop("num_train_epochs")
        saved = {**saved, "training": training, "trl": trl}
    if "report_to" in trl:
        named = trl.pop("report_to")
        training["report_to"] = named if isinstance(named, list) else [named]
        saved = {**saved, "training": training, "trl": trl}
    if not {"learner_variant", "student_variant"} <= set(privilege):
        return {**saved, "training": training}
    privilege["copy_variant"], privilege["student_variant"] = privilege["student_variant"], privilege["learner_variant"]
    del privilege["learner_variant"]
    training = {name: trl.pop(name, value) for name, value in asdict(TrainerSettings()).items()} | training
    return {**saved, "privilege": privilege, "training": training, "trl": trl}
