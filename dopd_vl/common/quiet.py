"""What libraries print of their own accord, kept off a terminal that has one thing to tell."""

import logging
import warnings
from types import ModuleType

from dopd_vl.common.visible import one_visible_line


def quiet_libraries() -> None:
    """Turn off the progress bars of model and data loading and warnings about the libraries' own affairs.

    Any other warning is one line, without the code that it came from.
    """
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.utils.logging.disable_progress_bar()
    warnings.formatwarning = lambda message, *args, **kwargs: f"warning: {one_visible_line(str(message))}\n"
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def import_supervision() -> ModuleType:
    """supervision, without a word: its first import warns where OpenCV is missing, and numpy then draws the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import supervision
    return supervision
