"""PSNR by bins of blur, against figures worked out by hand."""

import numpy as np
import pytest

from bags_jax.report.psnr_by_blur import EDGES_PX, TrainingView, average_by_blur, format_rows, name_bins, score_render


def test_views_fall_into_the_bins_of_their_blur():
    views = [
        TrainingView(blur, psnr) for blur, psnr in ((0.0, 30.0), (0.49, 34.0), (1.0, 25.0), (1.9, 23.0), (9.0, 20))
    ]
    bins = average_by_blur(views)
    assert list(bins) == ["under 0.5 px", "0.5 to 1 px", "1 to 2 px", "2 px and more"] == name_bins()
    assert [bin["PSNR"] for bin in bins.values()] == [32.0, None, 24.0, 20.0]  # an empty bin has no figure, never 0
    assert [bin["num_views"] for bin in bins.values()] == [2, 0, 2, 1]
    assert len(bins) == len(EDGES_PX) - 1 and sum(bin["num_views"] for bin in bins.values()) == len(views)


def test_score_is_the_psnr_of_the_valid_pixels():
    truth = np.full((4, 6, 3), 51, np.uint8)  # 0.2
    render = np.full((4, 6, 3), 0.3, np.float32)
    render[0] = 5.0
    valid = np.ones((4, 6), bool)
    valid[0] = False
    blur_px = np.full((4, 6), 1.5, np.float32)
    blur_px[0] = 100.0
    view = score_render(render, truth, blur_px, valid)
    assert view.psnr == pytest.approx(20.0, abs=1e-4) and view.blur_px == pytest.approx(1.5)
    whole = score_render(render, truth, blur_px)
    assert whole.psnr == pytest.approx(-10 * np.log10((18 * 0.1**2 + 6 * 0.8**2) / 24), abs=1e-4)  # clipped to 1
    assert np.isfinite(score_render(truth / 255.0, truth, blur_px).psnr)  # equal pictures: the cap


def test_rows_of_the_report():
    assert format_rows(None) == []
    rows = format_rows(average_by_blur([TrainingView(3.0, 21.234)]))
    assert rows == [["PSNR where the blur is 2 px and more", "21.23", "dB, against sharp truth; photographs: 1"]]
