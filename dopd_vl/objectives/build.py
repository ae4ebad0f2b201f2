"""An objective by its name in a configuration."""

from dopd_vl.common.configuration import settings_of
from dopd_vl.common.errors import ConfigurationError, nearest
from dopd_vl.objectives import OBJECTIVES, Objective
from dopd_vl.train_config import TrainConfig


def build_objective(config: TrainConfig) -> Objective:
    """The objective that the configuration names, with its settings checked."""
    name = config.objective.name
    if name not in OBJECTIVES:
        raise ConfigurationError(f"objective.name: unknown objective {name!r}, {nearest(name, OBJECTIVES)}")
    return settings_of(OBJECTIVES[name], config.objective.settings, "objective.settings")
