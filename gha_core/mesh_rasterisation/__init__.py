"""Triangle meshes to images: z-buffer, interpolated attributes, soft silhouettes."""

from gha_core.mesh_rasterisation.exposure import exposed_faces
from gha_core.mesh_rasterisation.render import Edges, MeshImage, mesh_edges, render_mesh
from gha_core.mesh_rasterisation.visibility import BACKENDS, Fragments, rasterize, to_screen

__all__ = [
    "BACKENDS",
    "Edges",
    "Fragments",
    "MeshImage",
    "exposed_faces",
    "mesh_edges",
    "rasterize",
    "render_mesh",
    "to_screen",
]
