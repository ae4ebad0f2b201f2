"""The names of what lies in a run folder, each of them once."""

from pathlib import Path

CONFIG_FILE = "config.yaml"
"""the resolved configuration, every default written out"""
FINGERPRINT_FILE = "fingerprint.json"
"""what the run began with: its data and its models"""
METRICS_FILE = "metrics.jsonl"
ROLLOUTS_FILE = "rollouts.jsonl"
"""rollouts that were kept to look at, each token with its routing"""
IMAGES_FOLDER = "images"
"""the images of kept rollouts"""
REFUSED_FILE = "refused.jsonl"
"""examples that were passed over, with the reason"""
ALARMS_FILE = "alarms.jsonl"
STOPPED_FILE = "stopped.json"
"""why an alarm ended the run"""
BEST_FOLDER = "best"
"""the student of the best evaluation so far"""
STUDENT_FOLDER = "student"
"""the student after the last step"""
FACTS_FILE = "dopd.json"
"""in a student's folder, written last: the step it is of, what it scored, and every file of it, with its digest"""
CARD_FILE = "README.md"
"""in a student's folder: what it came from, how it was taught, how it scored"""
COMPLETE_FILE = "complete.json"
"""in a checkpoint, written last: every file of it, with its digest"""
DIGESTS_FILE = "digests.json"
"""what the files that grow with the run had in them at its last checkpoint"""
KEPT_FOLDER = "run"
"""in a checkpoint: the run folder's own small files as they were then"""
AVERAGE_FILE = "average.safetensors"
"""in a checkpoint: the slow average of the student, or its start"""

_CHECKPOINT = "checkpoint-"


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return run / f"{_CHECKPOINT}{step}"


def checkpoint_step(folder: Path) -> int:
    """The step of a checkpoint's folder, by its name; -1 for any other name."""
    step = folder.name.removeprefix(_CHECKPOINT)
    return int(step) if folder.name.startswith(_CHECKPOINT) and step.isdecimal() else -1


def folder_of_model(folder: Path) -> Path:
    """The folder that a model is called after: of a run's student its run, as all students are called student."""
    return folder.parent if folder.name in (STUDENT_FOLDER, BEST_FOLDER) else folder


def name_of_model(folder: Path) -> str:
    """What a model's folder is called."""
    return folder_of_model(folder).name
