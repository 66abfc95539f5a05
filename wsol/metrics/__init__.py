"""Metrics of attribution maps: pure functions of arrays."""
from .boxes import best_ious, box_iou, boxes_above, scale_boxes
from .erasure import ERASE_RATIOS, erase
from .pixels import (
    RECALLS,
    THRESHOLD_TYPES,
    bin_edges,
    bin_scores,
    count_scores,
    pixel_average_precision,
    precision_at_recall,
    precision_recall,
    running_pxaps,
)
from .statistics import bootstrap_ratio, bootstrap_sums, half_width, interval, ratio

__all__ = ['ERASE_RATIOS', 'RECALLS', 'THRESHOLD_TYPES', 'best_ious', 'bin_edges', 'bin_scores', 'bootstrap_ratio',
           'bootstrap_sums', 'box_iou', 'boxes_above', 'count_scores', 'erase', 'half_width', 'interval',
           'pixel_average_precision', 'precision_at_recall', 'precision_recall', 'ratio', 'running_pxaps',
           'scale_boxes']
