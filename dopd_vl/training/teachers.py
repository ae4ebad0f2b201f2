"""Several teachers, and served ones: which of them teaches an example, and what a plan becomes for them.

To an objective there is one policy "teacher". Its scores are put together from those of whoever teaches each example;
a term that needs more than scores becomes a term for each of them. Of a served teacher nothing is known but its
likeliest tokens: a term over the whole vocabulary looks at these, and at the rest as one.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopd_vl.common.errors import ConfigurationError, UserError
from dopd_vl.common.http import is_address
from dopd_vl.common.resources import find_model
from dopd_vl.core import Plan, Source, Term, TokenScores
from dopd_vl.objectives import Objective
from dopd_vl.objectives.base import Requirements
from dopd_vl.objectives.trial import trial_plan
from dopd_vl.served.protocols import Question
from dopd_vl.served.teacher import ServedTeacher
from dopd_vl.train_config import ModelSettings, Quantization, TeacherSettings
from dopd_vl.views import ViewProcessor

TEACHER = "teacher"
DEFAULT = f"{TEACHER}:default"
"""The teacher of what no other teaches, as one of several."""
FEWEST_ENTRIES = 20
"""Entries that a served teacher is asked for at least, for its entropy and for the log; vLLM's own limit."""


def is_teacher(policy: str) -> bool:
    """Whether a policy is one of the teachers: "teacher", or "teacher:NAME" where there are several."""
    return policy.partition(":")[0] == TEACHER


class Teacher(NamedTuple):
    """A teacher of a part of the data, as `DopdTrainer(teachers={"name": Teacher(...)})` takes it."""

    model: Any
    """folder, hub id or model, as `teacher_model`; or the address of a server, or a `ServedTeacher`"""
    sources: Sequence[str] = ()
    """values of the column `source` that it teaches"""
    tasks: Sequence[str] = ()
    """values of the column `task`"""
    init_kwargs: Mapping[str, Any] = MappingProxyType({})
    """for loading it, beside those of `teacher_model_init_kwargs`"""

    def teaches(self, example: Mapping[str, Any]) -> bool:
        return example.get("source") in self.sources or example.get("task") in self.tasks


@dataclass
class Teachers:
    """All teachers of a run, by policy: "teacher:default", where there is one, and "teacher:NAME".

    Args:
        default: whether there is one for examples that no other names.
        others: name -> teacher, in the order in which they are looked at.
        served: policy -> teacher, of those that are.
    """

    default: bool = True
    others: Mapping[str, Teacher] = field(default_factory=dict)
    served: Mapping[str, ServedTeacher] = field(default_factory=dict)

    @classmethod
    def given(cls, default: Any, others: Mapping[str, Teacher]) -> "tuple[Teachers, dict[str, Any]]":
        """From what `DopdTrainer` was given: the teachers, and what is to be loaded in this process, by policy.

        Raises:
            ConfigurationError: a name is none, or a teacher names neither sources nor tasks.
        """
        models = {} if default is None else {DEFAULT: default}
        for name, teacher in others.items():
            if not str(name).isidentifier() or f"{TEACHER}:{name}" == DEFAULT:
                raise ConfigurationError(
                    f"teachers: {name!r} is no name, which is of letters, digits and '_'; default is teacher_model's"
                )
            if not teacher.sources and not teacher.tasks:
                raise ConfigurationError(
                    f"teachers[{name!r}]: give the sources or the tasks of the data that it teaches"
                )
            models[f"{TEACHER}:{name}"] = teacher.model
        served = {}
        for policy, model in models.items():
            if isinstance(model, str) and is_address(model):
                key = "teacher_model" if policy == DEFAULT else policy.replace(":", "s.")
                model = ServedTeacher(model, key=key)
            if isinstance(model, ServedTeacher):
                served[policy] = model
                if policy != DEFAULT and model.server.key == "model.teacher":
                    model.server.rename(policy.replace(":", "s."))
        local = {policy: model for policy, model in models.items() if policy not in served}
        return cls(default is not None, dict(others), served), local

    @classmethod
    def of_settings(cls, settings: ModelSettings) -> "Teachers":
        """Who teaches what by a configuration, in the order of `ModelSettings.teacher_names`; nobody is asked."""
        others = {name: Teacher(one.model, one.sources, one.tasks) for name, one in settings.teachers.items()}
        return cls(settings.teacher is not None, others)

    @property
    def policies(self) -> list[str]:
        """In order; an example's teacher is a place in it."""
        return [DEFAULT] * self.default + [f"{TEACHER}:{name}" for name in self.others]

    @property
    def local(self) -> list[str]:
        """Those whose model is in this process."""
        return [policy for policy in self.policies if policy not in self.served]

    @property
    def top_k(self) -> int | None:
        """Entries that every served teacher gives; None where none is served."""
        return min((teacher.top_k for teacher in self.served.values()), default=None)

    @property
    def is_plain(self) -> bool:
        """Whether there is one alone, in this process, or none at all."""
        return not self.others and not self.served

    def of(self, example: Mapping[str, Any]) -> int | None:
        """The place of an example's teacher; None where it has none."""
        for place, teacher in enumerate(self.others.values(), start=int(self.default)):
            if teacher.teaches(example):
                return place
        return 0 if self.default else None

    def shared_out(self, plan: Plan, owner: Tensor, top_k: int) -> Plan:
        """The plan with each term of the teacher's that needs more than scores as one of each teacher's.

        Args:
            owner: `[B]`, the place of each rollout's teacher.
            top_k: entries that scores hold.
        """
        if self.is_plain:
            return plan
        terms: list[Any] = []
        for term in plan.terms:
            if not (isinstance(term, Term) and is_teacher(term.source.policy) and needs_more_than_scores(term)):
                terms.append(term)
                continue
            by_server = torch.zeros_like(owner, dtype=torch.bool)
            for place, policy in enumerate(self.policies):
                if policy in self.served:
                    by_server |= owner == place
                else:
                    weight = term.weight * (owner == place).unsqueeze(-1)
                    terms.append(replace(term, source=Source(policy, term.source.view), weight=weight))
            if self.served:
                weight = term.weight * by_server.unsqueeze(-1)
                terms.append(
                    replace(term, weight=weight, support="top_k", top_k=top_k, top_k_source="target", tail="bucket")
                )
        return Plan(tuple(terms), plan.reduction)


def needs_more_than_scores(term: Term) -> bool:
    """Whether a term reads its policy at other tokens than the likeliest and the sampled one."""
    return term.support == "full" or (term.support == "top_k" and term.top_k_source != "target")


class ServedNeeds(NamedTuple):
    """What an objective asks of a served teacher."""

    top_k: int
    """entries a token"""
    cut: bool
    """whether terms over the whole vocabulary take these and the rest as one"""


def served_needs(objective: Objective, group: int, logged_top_k: int, vocabulary: int) -> ServedNeeds:
    """What an objective asks of a served teacher.

    Args:
        group: rollouts of a prompt.
        logged_top_k: entries that are logged, and that terms over the whole vocabulary take.

    Raises:
        ValueError: what it needs no server gives; the message says what.
    """
    name = objective.name
    for pair in Requirements.of(objective).pairs:
        if TEACHER in (pair.student.policy, pair.target.policy):
            raise ValueError(
                f"objective {name!r} measures how far the teacher's whole distribution is from the student's, and a "
                "served teacher gives its likeliest tokens alone"
            )
    plan, _ = trial_plan(objective, group, max(logged_top_k, getattr(objective, "top_k", 0)))
    terms = [term for term in plan.terms if isinstance(term, Term) and term.source.policy == TEACHER]
    for term in terms:
        if term.support == "top_k" and term.top_k_source != "target":
            raise ValueError(
                f"objective {name!r} asks the teacher about the {term.top_k_source}'s likeliest tokens "
                f"(top_k_source: {term.top_k_source}), and a served teacher tells of its own; set top_k_source: target"
            )
        if term.temperature != 1.0:
            raise ValueError(
                f"objective {name!r} compares distributions at temperature {term.temperature:g}, for which a served "
                "teacher's likeliest tokens do not do"
            )
    cut = any(term.support == "full" for term in terms)
    wanted = [term.top_k for term in terms if term.support == "top_k"] + [logged_top_k] * cut
    return ServedNeeds(min(max([FEWEST_ENTRIES, *wanted]), vocabulary), cut)


def truncated(scores: TokenScores, top_k: int) -> TokenScores:
    """The same scores with fewer entries a token, the others' mass in the tail."""
    beyond = scores.top_k_logp[..., top_k:]
    if beyond.shape[-1] == 0:
        return scores
    tail = torch.logaddexp(scores.tail_logp, beyond.logsumexp(-1).to(scores.tail_logp.device))
    kept = {"top_k_ids": scores.top_k_ids[..., :top_k], "top_k_logp": scores.top_k_logp[..., :top_k]}
    return replace(scores, tail_logp=tail, **kept)


class TeacherLost(UserError):
    """A served teacher failed a run, on this rank or on another."""


def compare(served: ServedTeacher, views: ViewProcessor, needs: ServedNeeds, sees_images: bool = True) -> str | None:
    """Whether a served teacher reads what the student reads, see `ServedTeacher.check`.

    Args:
        views: of the student.
        sees_images: whether any example that it teaches may have some.
    """
    messages = [{"role": "user", "content": "1 + 1"}]
    trial = views.view({"id": "1 + 1", "prompt": messages})
    picture = None
    if views.reads_images and sees_images:
        shown = views.picture
        image_token = views.config.image_token_id
        picture = Question(shown.prompt_ids, [views.tokenizer.eos_token_id], shown.images, image_token)
    return served.check(
        views.tokenizer,
        views.config.get_text_config().vocab_size,
        needs.top_k,
        (messages, trial.prompt_ids),
        picture,
        views.chat_template_kwargs or None,
    )


def teachers_of(settings: ModelSettings) -> tuple[str | ServedTeacher | None, dict[str, Teacher]]:
    """The default teacher and the others of a configuration, as `DopdTrainer` takes them."""

    def found(name: str, key: str, own: TeacherSettings | None = None) -> str | ServedTeacher:
        if not is_address(name):
            return find_model(name)
        if own is None:
            return ServedTeacher(name, settings.server, key)
        server = replace(settings.server, name=own.name, key_env=own.key_env)
        return ServedTeacher(name, server, key, key.removesuffix(".model"))

    default = None if settings.teacher is None else found(settings.teacher, "model.teacher")
    others = {
        name: Teacher(
            found(teacher.model, f"model.teachers.{name}.model", teacher),
            teacher.sources,
            teacher.tasks,
            quantized(teacher.quantization),
        )
        for name, teacher in settings.teachers.items()
    }
    return default, others


def quantized(bits: Quantization | None) -> dict[str, Any]:
    """Arguments for loading a model whose weights are of so few bits; none for None."""
    if bits is None:
        return {}
    settings: dict[str, Any] = {"quant_method": "bitsandbytes", f"load_in_{bits}": True}
    if bits == "4bit":
        settings |= {
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": "bfloat16",
        }
    return {"quantization_config": settings}


class RandomStates:
    """The states that random numbers are drawn from in this process, as they are when this is made."""

    def __init__(self) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu)
