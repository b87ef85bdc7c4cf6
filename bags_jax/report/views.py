"""What the report shows of one view: its pictures, and its blur kernels at a grid of pixels."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8


@dataclasses.dataclass(frozen=True)
class KernelGrid:
    """Blur kernels at the centres of gh x gw equal cells of a photograph."""

    kernels: Float[np.ndarray, "gh gw K K"]  # taps >= 0 that sum to 1, rows (dy) then columns (dx)
    masks: Float[np.ndarray, "gh gw"]  # share of the light of each pixel that comes from other pixels
    widths_px: Float[np.ndarray, "gh gw"]  # RMS, px of the photograph
    directions_deg: Float[np.ndarray, "gh gw"]  # of the longer axis, from +x towards +y (down)
    px_per_tap: float  # px of the photograph

    def pick(self, rows: int, columns: int) -> "KernelGrid":
        """Returns at most rows x columns of the kernels, evenly spaced; their places are those of `places`."""
        chosen = np.ix_(places(rows, self.masks.shape[0]), places(columns, self.masks.shape[1]))
        kernels, masks, widths, directions = (
            field[chosen] for field in (self.kernels, self.masks, self.widths_px, self.directions_deg)
        )
        return KernelGrid(kernels, masks, widths, directions, self.px_per_tap)

    @property
    def full_weight(self) -> float:
        """See choose_full_weight."""
        return choose_full_weight(self.kernels)


@dataclasses.dataclass(frozen=True)
class ViewBlur:
    """The blur of one training view."""

    grid: KernelGrid
    reach_px: Float[np.ndarray, "h w"]  # RMS width of the blur of each block of pixels, px of the photograph


@dataclasses.dataclass(frozen=True)
class TrainingPictures:
    """One training view."""

    name: str
    photo: UInt8[np.ndarray, "H W 3"]
    sharp: UInt8[np.ndarray, "H W 3"]  # the render without blur
    blurred: UInt8[np.ndarray, "H W 3"]  # the render, blurred as the photograph; equals `sharp` without a blur model
    blur: ViewBlur | None  # None: no blur model


@dataclasses.dataclass(frozen=True)
class HeldOutPictures:
    """One held-out view."""

    name: str
    photo: UInt8[np.ndarray, "H W 3"]
    sharp: UInt8[np.ndarray, "H W 3"]


def choose_full_weight(kernels: Float[np.ndarray, "gh gw K K"]) -> float:
    """Chooses the weight of a tap that is drawn with full brightness in all kernels of a view, so that kernels compare.

    The heaviest tap of nine kernels in ten is at most this: a single sharp pixel must not darken all others.
    """
    return max(1e-12, float(np.quantile(kernels.max(axis=(2, 3)), 0.9)))


def places(count: int, full: int) -> np.ndarray:
    """Indices of at most `count` evenly spaced elements out of `full`."""
    count = min(count, full)
    return np.floor((np.arange(count) + 0.5) / count * full).astype(int)
