"""What a video is judged by; frames are uint8 [n, height, width, 3], stills [height, width, 3]."""

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
MAX_PSNR = 60.0  # of identical pictures


def psnr(a: Frame, b: Frame, where: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio in dB, over the pixels `where` is true."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    mse = error.mean() if where is None else error[where].mean()
    return min(MAX_PSNR, float(10 * np.log10(255**2 / max(mse, 1e-9))))


def chroma_error(a: Frame, b: Frame) -> float:
    """Mean absolute difference of Cb and Cr, in 1/255."""
    planes = [cv2.cvtColor(v, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float64) for v in (a, b)]
    return float(np.abs(planes[0] - planes[1]).mean())


def sharpness(frame: Frame) -> float:
    """Variance of the luminance's Laplacian."""
    return float(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def optical_flow(a: Frame, b: Frame) -> NDArray[np.float32]:
    """Dense flow from a to b, [height, width, 2] pixels (Farnebäck 2003)."""
    grey = [cv2.cvtColor(v, cv2.COLOR_RGB2GRAY) for v in (a, b)]
    return cv2.calcOpticalFlowFarneback(grey[0], grey[1], None, 0.5, 4, 15, 5, 7, 1.5, 0)


def mean_flow(frames: Frame) -> float:
    """Mean length of the optical flow from frame to frame, pixels a frame."""
    pairs = zip(frames[:-1], frames[1:], strict=True)
    return float(np.mean([np.linalg.norm(optical_flow(a, b), axis=-1).mean() for a, b in pairs]))


def steadiness(frames: Frame) -> float:
    """Mean PSNR of each frame against the next one brought back by optical flow, where that is inside the picture."""
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    scores = []
    for a, b in zip(frames[:-1], frames[1:], strict=True):
        flow = optical_flow(a, b)
        to_x, to_y = x + flow[..., 0], y + flow[..., 1]
        back = cv2.remap(b, to_x, to_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        inside = (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        scores.append(psnr(a, back, inside))
    return float(np.mean(scores))


def judge(frames: Frame, still: Frame) -> dict[str, float]:
    """All figures of one video made from `still`."""
    return {
        "first_frame_psnr": psnr(frames[0], still),
        "chroma_error": chroma_error(frames[0], still),
        "first_frame_sharpness": sharpness(frames[0]) / sharpness(still),
        "last_frame_sharpness": sharpness(frames[-1]) / sharpness(frames[0]),
        "steadiness": steadiness(frames),
        "flow": mean_flow(frames),
    }
