"""Triangle meshes to images: z-buffer, interpolated attributes, soft silhouettes."""

from gha_core.mesh_rasterisation.visibility import Fragments, rasterize, to_screen

__all__ = ["Fragments", "rasterize", "to_screen"]
