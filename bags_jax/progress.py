"""The progress bar, and the scalars of the last dispatch for the logs."""

import tqdm

from bags_jax.schedule import Stage


class Progress:
    """A progress bar with step, stage, loss, PSNR, number of Gaussians and the remaining time. quiet: nothing is shown."""

    def __init__(self, num_steps: int, notes: tuple[str, ...] = (), *, step: int = 0, quiet: bool = False):
        self._is_quiet = quiet
        for note in notes:
            self.note(note)
        if step == num_steps:
            self.note(f"all {num_steps} steps of this run are done already")
        options = {"unit": "step", "dynamic_ncols": True, "mininterval": 0.5, "disable": quiet}
        self._bar = tqdm.tqdm(total=num_steps, initial=step, **options)
        self._scalars: dict[str, float] = {}
        self._has_advised = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()

    def advise(self, line: str) -> None:
        """Prints a line above the bar, the first time that there is one; "" prints nothing."""
        if line and not self._has_advised:
            self.note(line)
            self._has_advised = True

    def note(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._is_quiet:
            tqdm.tqdm.write(f"note: {line}")

    def update(self, step: int, stage: Stage, metrics: dict) -> None:
        """Shows the metrics of the steps up to `step` (numbers on the host)."""
        self._scalars = {f"train/{name}": value for name, value in metrics["mean"].items()}
        self._scalars["num_gaussians"] = metrics["num_gaussians"]
        self._scalars["num_intersections"] = metrics["num_intersections"]
        self._scalars["image_scale"] = stage.scale
        self._bar.set_description(stage.name, refresh=False)
        self._bar.set_postfix_str(
            f"loss {self._scalars['train/total']:.4f}, PSNR {self._scalars['train/psnr']:.2f}, "
            f"{self._scalars['num_gaussians']} Gaussians",
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    def scalars(self) -> dict[str, float]:
        """Scalars of the last update, by name, for the logs."""
        return self._scalars
