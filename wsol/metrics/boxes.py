"""Boxes around the parts of a map above a threshold, and their overlaps with the true boxes.

Source: the WSOL evaluation of Choe et al., CVPR 2020.
"""
import cv2
import numpy as np


def box_iou(first, second):
    """Intersection over union of inclusive boxes x0, y0, x1, y1: (A,4), (B,4) -> (A,B).

    As published, a box spans x1 - x0 + 1 pixels.
    """
    first, second = np.asarray(first)[:, None], np.asarray(second)[None]  # (A,1,4), (1,B,4)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    intersection = np.maximum(0, high - low + 1).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(-1) for boxes in (first, second)]
    return intersection / (areas[0] + areas[1] - intersection)


def scale_boxes(boxes, size, new_size):
    """Boxes (K,4) of an image of size (width, height) in one of new_size, truncated to integers as published."""
    scale = np.tile(np.asarray(new_size, np.float64), 2)
    return (np.asarray(boxes, np.float64) * scale / np.tile(size, 2)).astype(np.int64)


def boxes_above(image, level):
    """Boxes around the contours of image > level, the box of the largest contour first.

    image: (H,W) uint8. All contours count, also those of holes (cv2.RETR_TREE). As published, x1 and y1 are one beyond
    the contour, but at most size - 1, and without a contour the box is 0, 0, 0, 0. Returns (K,4) int64.
    """
    _, binary = cv2.threshold(image, int(level), 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((1, 4), np.int64)
    largest = max(range(len(contours)), key=lambda index: cv2.contourArea(contours[index]))
    rects = np.array([cv2.boundingRect(contour) for contour in (contours[largest], *contours)], np.int64)
    rects[:, 2:] += rects[:, :2]
    return np.minimum(rects, np.array(image.shape[1::-1] * 2) - [0, 0, 1, 1])


def best_ious(score_map, truth, thresholds):
    """The best overlap of a map's boxes with any true box, at every threshold.

    score_map: (H,W) in 0..1; truth: (G,4) boxes on the same grid; thresholds: (T,). Returns two (T,) arrays: over all
    contours (MaxBoxAccV2) and for the largest one (MaxBoxAcc).
    """
    image = (score_map * 255).astype(np.uint8)
    # the map has at most 256 levels: the boxes of a level serve all thresholds that fall on it
    levels, back = np.unique((np.asarray(thresholds) * image.max()).astype(np.int64), return_inverse=True)
    overlaps = [box_iou(boxes_above(image, level), truth).max(1) for level in levels]
    return np.array([ious.max() for ious in overlaps])[back], np.array([ious[0] for ious in overlaps])[back]
