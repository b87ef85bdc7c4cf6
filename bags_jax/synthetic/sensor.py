"""The noise of a camera's sensor: photons arrive at random, and reading the charge adds an error."""

import dataclasses

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Sensor:
    """Charges of one pixel, in electrons."""

    full_well: float  # charge at white, where the pixel saturates; fewer: more noise
    read_noise: float  # standard deviation of the read-out

    def expose(self, light: Float[np.ndarray, "*axes"], key: np.random.Generator) -> Float[np.ndarray, "*axes"]:
        """Returns the light that the sensor measures: of mean `light` and variance (light + read_noise^2 / W) / W.

        W is the full well. The charge is a Poisson variable and saturates; the read-out adds Gaussian noise, so results
        may lie a little below 0 or above 1.

        Args:
          light: linear, averaged over the exposure, 1 is white; may be larger.
          key: of the noise.
        """
        charge = np.minimum(key.poisson(np.maximum(light, 0.0) * self.full_well), self.full_well)
        return (charge + self.read_noise * key.normal(size=np.shape(light))) / self.full_well
