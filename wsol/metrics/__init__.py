"""Metrics of attribution maps: pure functions of arrays."""
from .boxes import best_ious, box_iou, boxes_above, scale_boxes
from .calibration import calibration
from .erasure import CAVEAT, ERASE_RATIOS, FILLS, area_over_erased, coarse_noise, erase, impute
from .pixels import (
    RECALLS,
    THRESHOLD_TYPES,
    add_scores,
    bin_edges,
    bin_scores,
    count_scores,
    mass_inside,
    pixel_average_precision,
    precision_at_recall,
    precision_recall,
    running_pxaps,
)
from .statistics import bootstrap_mean, bootstrap_ratio, bootstrap_sums, half_width, interval, ratio
