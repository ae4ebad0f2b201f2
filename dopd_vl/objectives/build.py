"""An objective by its name."""

from collections.abc import Mapping
from typing import Any

from dopd_vl.common.configuration import settings_of
from dopd_vl.common.errors import ConfigurationError, nearest
from dopd_vl.objectives import OBJECTIVES, Objective


def build_objective(name: str, settings: Mapping[str, Any]) -> Objective:
    """The objective that a configuration names under `objective`, with its settings checked."""
    if name not in OBJECTIVES:
        raise ConfigurationError(f"objective.name: unknown objective {name!r}, {nearest(name, OBJECTIVES)}")
    return settings_of(OBJECTIVES[name], settings, "objective.settings")
