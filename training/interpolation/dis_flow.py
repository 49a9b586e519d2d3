"""The baseline: a frame between two by OpenCV's DIS optical flow. Needs opencv-python-headless."""

import numpy as np


def warped_by_flow(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame in the middle, float in 0…255, sampled bilinearly and bicubically.

    It is the mean of both frames, warped by half of the flow, which is the mean of those in both directions.
    """
    import cv2

    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    flow = (dis.calc(*grey, None) - dis.calc(*grey[::-1], None)) / 2
    bilinear, bicubic = (
        (_sampled(first, -flow / 2, how) + _sampled(second, flow / 2, how)) / 2
        for how in (cv2.INTER_LINEAR, cv2.INTER_CUBIC)
    )
    return bilinear, bicubic


def _sampled(frame: np.ndarray, displacement: np.ndarray, how: int) -> np.ndarray:
    import cv2

    height, width = displacement.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    place = x + displacement[..., 0], y + displacement[..., 1]
    return cv2.remap(frame.astype(np.float32), *place, how, borderMode=cv2.BORDER_REPLICATE)
