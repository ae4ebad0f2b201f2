"""What a run does, as plain numbers: all that the memory and the time of a step are computed from."""

from dataclasses import dataclass, replace
from typing import Literal

from dopd_vl.planning.shapes import ModelShape
from dopd_vl.train_config import Quantization
from dopd_vl.training.prompt_sharing import can_go_on
from dopd_vl.training.teachers import TEACHER
from dopd_vl.views.rollouts import ROLLOUT_VIEWS

Parallel = Literal["single", "ddp", "fsdp2", "zero2", "zero3"]
Precision = Literal["float32", "autocast", "bfloat16"]
"""Of the student's passes: "float32", everything (a CPU); "autocast", fp32 weights and bf16 products (one GPU, DDP);
"bfloat16", bf16 weights in every pass with fp32 ones kept in shards (FSDP2, ZeRO)."""


@dataclass(frozen=True)
class Scoring:
    """One policy that is scored before learning."""

    policy: str
    """"teacher", "student", "start" or "average" """
    view: str
    """"plain", "privileged", "sibling" or "own" (the prompt with a rollout of it), or a variant"""
    supervises: bool
    """whether the plan has a term of it, so that its scores are kept for learning"""
    keeps_hidden: bool
    """whether a term needs hidden states beyond the scores"""
    of_all_tokens: bool
    """whether it needs those of every token"""

    @property
    def shares_prompts(self) -> bool:
        """Whether siblings have the same view."""
        return self.view not in ROLLOUT_VIEWS

    def __str__(self) -> str:
        return f"{self.policy} ({self.view})"


@dataclass(frozen=True)
class TeacherHere:
    """A teacher in the trainer's process."""

    shape: ModelShape
    name: str = ""
    """of one of several: "default" or its own"""
    quantization: Quantization | None = None

    def __str__(self) -> str:
        return f"teacher {self.name}".rstrip()


@dataclass(frozen=True)
class ServedTeachers:
    """Those that servers run: nothing of them is here but what they answer."""

    addresses: tuple[str, ...]
    top_k: int
    """entries a token"""
    cut: bool
    """whether terms over the whole vocabulary take these, and the rest as one"""
    sglang: bool = False
    """whether it is known to be SGLang, which sends less than vLLM"""
    concurrency: int = 64
    """requests in flight of a process"""


@dataclass(frozen=True)
class Workload:
    """One optimizer step of one device, and the machine. Tokens are the longest ones."""

    student: ModelShape
    teachers: tuple[TeacherHere, ...]
    """each may have to score every rollout of a step; on average, an equal share of them"""
    scorings: tuple[Scoring, ...]
    full_support: bool
    """whether any term is over the whole vocabulary"""

    batch: int
    """rollouts per forward and backward pass"""
    accumulation: int
    group: int
    """rollouts of a prompt"""
    scoring_batch: int
    prompt_tokens: int
    """of the plain view: rollouts and learning"""
    privileged_tokens: int
    """of the longest privileged view, with images as the student sees them: scoring"""
    response_tokens: int
    images: int = 0
    """of a prompt"""
    image_tokens: int = 0
    """of an image as the student sees it, after the merger; they are part of the prompt's tokens"""
    teacher_image_tokens: int | None = None
    """of one as the teacher sees it; None: as the student"""
    copy_image_tokens: int | None = None
    """of one in a privileged view of the student's copy; None: as the student"""

    parallel: Parallel = "single"
    devices: int = 1
    on_gpu: bool = True
    lora_rank: int = 0
    """0: all weights are trained"""
    lora_modules: str = "all-linear"
    frozen: tuple[str, ...] = ()
    """parts of the student that do not learn"""
    quantization: Quantization | None = None
    """of the student's weights, on which adapters are trained"""
    served: ServedTeachers | None = None
    teacher_bytes: int = 2
    """of a teacher's weight that is not quantised"""
    bf16: bool = True
    """whether a GPU computes products in bf16"""
    optimizer_bytes: int = 8
    """of a trained parameter"""
    checkpointing: bool = True
    share_prompts: bool = True
    chunk: int = 256
    top_k: int = 128
    """entries kept a token"""
    offload_scores: bool = False
    uses_vllm: bool = False
    vllm_share: float = 0.0
    """of the device's memory, where vLLM rolls out beside training; 0 where it has devices of its own"""
    vllm_sleeps: bool = False
    """whether vLLM gives its memory back between rollouts"""
    vllm_length: int = 0
    """tokens of the longest sequence that colocated vLLM has room for"""
    shard_teacher: bool = False
    """whether a teacher that is not DeepSpeed's lies in shards, too"""
    machines: int = 1
    save_total_limit: int = 2
    """whole checkpoints that are kept; 0 keeps all"""
    saves: int | None = 1
    """checkpoints that the run writes; None where passes over the data, not steps, say how long it is"""
    eval_batch: int = 0
    """responses that are drawn at a time in an evaluation; 0: there is none"""
    eval_prompt_tokens: int = 0
    eval_response_tokens: int = 0
    full_share: float = 0.5
    """tokens that terms of full support teach, where not all"""

    @property
    def precision(self) -> Precision:
        if not self.bf16:
            return "float32"
        if self.quantization is not None:  # what is not quantised is loaded in bf16
            return "bfloat16"
        return "autocast" if self.parallel in ("single", "ddp") else "bfloat16"

    def hidden_share(self, scoring: Scoring) -> float:
        """Share of tokens whose hidden states of a policy are kept."""
        return 1.0 if scoring.of_all_tokens else self.full_share

    def image_tokens_of(self, scoring: Scoring) -> int:
        """Of an image as a policy sees it."""
        plain = self.image_tokens if scoring.view == "plain" else self.copy_image_tokens
        own = self.teacher_image_tokens if scoring.policy == TEACHER else plain
        return self.image_tokens if own is None else own

    def view_tokens(self, scoring: Scoring) -> int:
        """The longest prompt of a policy's view."""
        larger = self.images * (self.image_tokens_of(scoring) - self.image_tokens)
        if scoring.view == "plain":
            return max(1, self.prompt_tokens + larger)
        return max(1, self.privileged_tokens + larger) + (0 if scoring.shares_prompts else self.response_tokens)

    def models_of(self, scoring: Scoring) -> tuple[tuple[str, ModelShape], ...]:
        """The models here that score, each with what it is called: of teachers as many as there are, maybe none."""
        if scoring.policy != TEACHER:
            return ((str(scoring), self.student),)
        return tuple((f"{teacher} ({scoring.view})", teacher.shape) for teacher in self.teachers)

    def share_of_a_model(self, scoring: Scoring) -> float:
        """Share of the rollouts that each of `models_of` scores on average."""
        if scoring.policy != TEACHER:
            return 1.0
        return 1 / max(1, len(self.teachers) + (0 if self.served is None else len(self.served.addresses)))

    @property
    def has_several_teachers(self) -> bool:
        return len(self.teachers) + (0 if self.served is None else len(self.served.addresses)) > 1

    def entries(self, scoring: Scoring) -> int:
        """Entries kept a token: of teachers, as many as each of them gives."""
        return self.top_k if scoring.policy != TEACHER or self.served is None else self.served.top_k

    def of_mean_length(self, share: float) -> "Workload":
        """With the tokens of an average rollout, as a share of the longest."""
        names = ("prompt_tokens", "privileged_tokens", "response_tokens")  # an evaluation is no part of a step
        return replace(self, **{name: round(getattr(self, name) * share) for name in names})

    @property
    def shards(self) -> int:
        """Parts that the student's optimizer state lies in."""
        return 1 if self.parallel in ("single", "ddp") else self.devices

    @property
    def teacher_shards(self) -> int:
        """Parts that the teacher's weights lie in."""
        return self.devices if self.shard_teacher or self.parallel == "zero3" else 1

    @property
    def gathers_to_generate(self) -> bool:
        """Whether the student, which lies in shards, is whole on every GPU while transformers generates."""
        return self.parallel in ("fsdp2", "zero3")

    @property
    def rollouts(self) -> int:
        """Of a step, on one device."""
        return self.batch * self.accumulation

    @property
    def trained(self) -> int:
        """Parameters that learn."""
        if self.lora_rank:
            return self.student.adapter_parameters(self.lora_rank, self.lora_modules, self.frozen)
        return self.student.parameters - sum(map(self.student.parameters_of, self.frozen))

    @property
    def saved(self) -> int:
        """Parameters of a saved student: all, or adapters."""
        return self.trained if self.lora_rank else self.student.parameters

    @property
    def language_learns(self) -> bool:
        """Whether the language model's own weights have gradients."""
        return not self.lora_rank and "language" not in self.frozen

    def shares_prompts(self, scoring: Scoring, model: ModelShape) -> bool:
        """Whether a model that scores reads a prompt once for its siblings."""
        return self._shares_prompts(model) and scoring.shares_prompts

    @property
    def trained_bytes(self) -> int:
        """Of a parameter that learns; TRL makes adapters on quantised weights bf16, their moments with them."""
        return 4 if self.quantization is None else 2

    @property
    def moments_bytes(self) -> int:
        """Of AdamW's two moments of a parameter."""
        return min(self.optimizer_bytes, 2 * self.trained_bytes)

    @property
    def learns_from_shared_prompts(self) -> bool:
        """As the trainer decides: layers without checkpointing, weights not sharded."""
        plain = self.parallel in ("single", "ddp")
        return self._shares_prompts(self.student) and not self.checkpointing and plain

    def _shares_prompts(self, model: ModelShape) -> bool:
        return self.share_prompts and self.group > 1 and can_go_on(model.config)
