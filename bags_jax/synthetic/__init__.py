"""The embedded scenes: photographs of ray-cast worlds, with the sharp truth of every view.

`make_scene` returns one. A world (`still_life.py`, `corner.py`, `relief.py`, `flight.py`) is a list of painted solids (`shapes.py`,
`paint.py`), lit once (`bake.py`) and ray-cast (`raycast.py`). `exposures.py` blurs the photographs, and `sensor.py` adds noise where a world is
dark.
"""

from bags_jax.synthetic.procedural import make_scene

__all__ = ["make_scene"]
