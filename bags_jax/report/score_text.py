"""The scores of a run as text for a terminal."""

from bags_jax.metrics import why_no_lpips
from bags_jax.report import psnr_by_blur, with_truth
from bags_jax.report.no_truth import format_rows
from bags_jax.report.tables import SCORES, format_scores, markdown_table

PROTOCOLS = ("deblur_nerf", "gaussian_splatting")


def describe_scores(results: dict) -> str:
    """Returns the results of `evaluate` as lines: both protocols, the aligned PSNR, the figures without truth."""
    rows = [[name, *format_scores(results[name])] for name in PROTOCOLS]
    lines = [
        f"step {results['step']}, {results['num_gaussians']} Gaussians, {len(results['per_view'])} held-out views",
        markdown_table(["protocol", *SCORES], rows),
    ]
    if results["shift_aligned"]["PSNR"] is not None:
        aligned, unshifted = (results["shift_aligned"][name] for name in ("PSNR", "unshifted_PSNR"))
        lines.append(
            f"PSNR after the best sub-pixel shift of each view: {aligned:.2f}; not shifted, in the same crop: {unshifted:.2f}"
        )
    lines.append(markdown_table(["without sharp truth", "value", "meaning"], format_rows(results["no_truth"])))
    if results["true_blur"] is not None:
        lines.append(
            markdown_table(["beside the true blur", "value", "meaning"], with_truth.format_rows(results["true_blur"]))
        )
    elif results["no_truth"]["has_blur_model"]:
        lines.append("The true blur of these photographs is not known: mask and widths are not scored")
    if results["PSNR_by_blur"] is not None:
        rows = psnr_by_blur.format_rows(results["PSNR_by_blur"])
        lines.append(markdown_table(["training views, by true blur", "value", "meaning"], rows))
    else:
        lines.append(psnr_by_blur.NO_TRUTH)
    if results["per_view"] and results["deblur_nerf"]["LPIPS"] is None:
        lines.append(why_no_lpips())
    return "\n".join(lines)
