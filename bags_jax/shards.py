"""Where the rows of the Gaussians are: whole on every device, or split over the devices of a mapped function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from bags_jax.parallel import AXIS, pmax, psum

MOVED_AT_ONCE = 1 << 16  # rows that density control moves between devices in one exchange


@dataclasses.dataclass(frozen=True)
class Shards:
    """Where the rows of the Gaussians are: row i on device i % num. With num 1 every device has all of them.

    Its methods may be called on a device only, within a mapped function. n rows are on each device, N on all together.
    """

    num: int = 1

    @property
    def are_split(self) -> bool:
        """True if no device has all rows."""
        return self.num > 1

    def count_rows(self, alive) -> int:
        """N, for an array with or without the axis of the devices."""
        return self.num * alive.shape[-1]

    def gather(self, tree):
        """The rows of all devices: [n ...] becomes [N ...], in their order."""
        if not self.are_split:
            return tree
        order = lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
        return jax.tree.map(lambda x: order(jax.lax.all_gather(x, AXIS)), tree)

    def own(self, x):
        """The rows of this device: [N ...] becomes [n ...]."""
        if not self.are_split:
            return x
        return x.reshape(-1, self.num, *x.shape[1:])[:, jax.lax.axis_index(AXIS)]

    def largest(self, x):
        """The largest of the values of all devices."""
        return pmax(x) if self.are_split else x

    def sum(self, x):
        """The sum of the values of all devices."""
        return psum(x) if self.are_split else x

    def all(self, condition: Bool[Array, ""]) -> Bool[Array, ""]:
        """True if a condition holds on all devices."""
        return jax.lax.pmin(condition.astype(jnp.int32), AXIS) > 0 if self.are_split else condition

    def exchange(self, tree, rows: Int[Array, "D S"] | None = None):
        """Sends block d of a tree to device d, for all d, and puts what comes into the order of the rows.

        The gradient flows back in the same way.

        Args:
          tree: arrays [D S ...].
          rows: which row of this device each of them belongs to, ascending; those beyond the last come last. None: they are
            all n rows of this device.
        Returns:
          arrays [D*S ...].
        """
        leaves, structure = jax.tree.flatten(tree)
        flat = [x.reshape(*x.shape[:2], -1) for x in leaves]
        received = _swap(jnp.concatenate(flat, axis=-1))
        if rows is None:
            ordered = jnp.swapaxes(received, 0, 1).reshape(-1, received.shape[-1])
        else:
            numbers = self.num * _swap(rows) + jnp.arange(self.num, dtype=rows.dtype)[:, None]
            ordered = received.reshape(-1, received.shape[-1])[jnp.argsort(numbers.ravel())]
        parts = jnp.split(ordered, np.cumsum([x.shape[-1] for x in flat])[:-1], axis=-1)
        return structure.unflatten([x.reshape(-1, *y.shape[2:]) for x, y in zip(parts, leaves, strict=True)])

    def move(self, tree, values, sources: Int[Array, "N"], targets: Int[Array, "N"], num: Int[Array, ""]):
        """Writes row sources[j] of `values` to row targets[j] of `tree`, for j < num; drops targets beyond the end."""
        if not self.are_split:
            return jax.tree.map(lambda x, y: x.at[targets].set(y[sources], mode="drop"), tree, values)
        total, rank = sources.shape[0], jax.lax.axis_index(AXIS)
        size = min(total, MOVED_AT_ONCE)
        sources = jnp.pad(sources, (0, -total % size))
        targets = jnp.pad(targets, (0, -total % size), constant_values=total)

        def move_some(carry):
            i, tree = carry
            source, target = (jax.lax.dynamic_slice(x, (i * size,), (size,)) for x in (sources, targets))
            is_here, row = source % self.num == rank, jnp.where(target % self.num == rank, target // self.num, total)
            masked = lambda y: jnp.where(is_here.reshape(-1, *(1,) * (y.ndim - 1)), y[source // self.num], 0)
            sent = psum(jax.tree.map(masked, values))
            return i + 1, jax.tree.map(lambda x, y: x.at[row].set(y, mode="drop"), tree, sent)

        return jax.lax.while_loop(lambda carry: carry[0] * size < num, move_some, (jnp.int32(0), tree))[1]


def _swap(x):
    """Block d of each device goes to device d: [D ...] becomes [D ...], by the device that it comes from."""
    return jax.lax.all_to_all(x, AXIS, 0, 0, tiled=True)


WHOLE = Shards()
