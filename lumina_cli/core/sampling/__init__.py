"""Sampling: latents from a network and a plan, images from a model folder, rows with images from rows.

Import everything except `draw_latents` from its module: a pipeline takes seconds to import, and training
needs only the latents.
"""

from lumina_cli.core.sampling.latents import draw_latents

__all__ = ["draw_latents"]
