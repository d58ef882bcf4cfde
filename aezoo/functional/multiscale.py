"""How alike two pictures are on several scales.

Legend: B batch, C channels, M scales, *S places along one to three axes; x and y pictures, mu local means, v local variances, c local
covariance, L the range of the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .core import full
from .images import K1, K2, SIGMA, WINDOW, gaussian_window

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2; they add up to 1.0001
FLOOR = 1e-3  # a power below 1 has an infinite slope at 0, and none is defined below
_CONV = (F.conv1d, F.conv2d, F.conv3d)
_POOL = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _smooth(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted local means where the whole window lies in the picture, axis by axis: (N, 1, *S) -> (N, 1, *S')."""
    rank = x.dim() - 2
    for axis in range(rank):
        kernel = weights.view(1, 1, *(-1 if i == axis else 1 for i in range(rank)))
        x = _CONV[rank - 1](x, kernel)
    return x


def ms_ssim_layout(size: Sequence[int], window: int = WINDOW) -> tuple[int, int]:
    """(edge of the window, number of scales) that `ms_ssim` takes for pictures of these sizes.

    The window is cut to the largest odd number that fits; of the five scales those are taken on which it still fits."""
    edge = min(window, *size)
    edge -= (edge + 1) % 2
    return edge, min(len(SCALE_WEIGHTS), 1 + int(math.log2(min(size) / edge)))


def ms_ssim(x: Tensor, y: Tensor, value_range: float = 1.0, window: int = WINDOW) -> Tensor:
    """Multi-scale structural similarity, 1 for equal pictures: (B, C, *S) twice -> (B,), the mean over channels of

        l_M^w_M * prod_{j <= M} cs_j^w_j,   l = (2 mu_x mu_y + (0.01 L)^2) / (mu_x^2 + mu_y^2 + (0.01 L)^2),
                                           cs = (2 c + (0.03 L)^2) / (v_x + v_y + (0.03 L)^2),

    cs_j the mean over the places of scale j (of l cs on the last one), each scale the means of 2 x 2 places of the one before.

    Paper: Wang, Simoncelli & Bovik 2003, "Multiscale structural similarity for image quality assessment", eq. 7, with its five weights;
    moments under a Gaussian window (sigma 1.5) where all of it lies in the picture. Deviations: small pictures have fewer scales
    (`ms_ssim_layout`; the weights of those are made to add up to as much) and a smaller window; means below 0.001, where the power has
    no useful gradient, count as that; odd sizes lose their last row when they are halved; one, two or three axes.
    Raises ValueError for other shapes."""
    if x.shape != y.shape or not 3 <= x.dim() <= 5:
        raise ValueError(
            f"ms_ssim takes two batches of pictures (B, C, *S) with one to three axes S; got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    batch, channels, *size = x.shape
    edge, scales = ms_ssim_layout(size, window)
    x, y = (full(t).reshape(batch * channels, 1, *size) for t in (x, y))
    weights = gaussian_window(edge, SIGMA, x)
    c1, c2 = (K1 * value_range) ** 2, (K2 * value_range) ** 2
    share = sum(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS)
    log_similarity = x.new_zeros(len(x))
    for j in range(scales):
        if j:
            x, y = (_POOL[len(size) - 1](t, 2) for t in (x, y))
        mu_x, mu_y = _smooth(x, weights), _smooth(y, weights)
        v_x, v_y = _smooth(x * x, weights) - mu_x.square(), _smooth(y * y, weights) - mu_y.square()
        likeness = (2 * (_smooth(x * y, weights) - mu_x * mu_y) + c2) / (v_x + v_y + c2)
        if j == scales - 1:
            likeness = likeness * (2 * mu_x * mu_y + c1) / (mu_x.square() + mu_y.square() + c1)
        log_similarity = log_similarity + SCALE_WEIGHTS[j] / share * likeness.flatten(1).mean(1).clamp_min(FLOOR).log()
    return torch.exp(log_similarity).view(batch, channels).mean(1)
