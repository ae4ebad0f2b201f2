"""Are the boxes of a response right? Both sides are lists in the form that Qwen3-VL grounds with."""

from dopd_vl.common.errors import RecordError
from dopd_vl.common.quiet import import_supervision
from privileged.records.grounding import grounded_boxes
from privileged.rendering.boxes import GRID


def verify_boxes(response: str, answer: str, least_iou: float = 0.5) -> bool:
    """Every box of `answer` has one of its own in the response, with the same label and an intersection over union of
    `least_iou` at least, and the response has no others.

    Both are JSON lists [{"bbox_2d": [x1, y1, x2, y2] in thousandths of the image, "label": "..."}]; the response may
    put words and a code fence around it. The best assignment counts.

    >>> cup = '[{"bbox_2d": [100, 100, 300, 300], "label": "cup"}]'
    >>> verify_boxes(cup.replace("[100, 100", "[120, 110"), cup), verify_boxes("[]", cup)
    (True, False)

    Raises:
        ValueError: the answer is no such list.
    """
    whole = (GRID, GRID)  # thousandths stay thousandths
    wanted = grounded_boxes(answer, whole)
    try:
        given = grounded_boxes(response, whole)
    except RecordError:
        return False
    if len(given) != len(wanted):
        return False
    if not wanted:
        return True
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    corners = [np.array([box["bbox"] for box in boxes], dtype=float) for boxes in (wanted, given)]
    overlap = import_supervision().box_iou_batch(corners[0], corners[1])
    labels = [[str(box["label"]).strip().lower() for box in boxes] for boxes in (wanted, given)]
    matches = (overlap >= least_iou) & np.array([[one == other for other in labels[1]] for one in labels[0]])
    rows, columns = linear_sum_assignment(matches, maximize=True)
    return bool(matches[rows, columns].all())
