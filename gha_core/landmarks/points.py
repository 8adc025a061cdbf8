"""Which of the 478 landmarks are what: contours as closed polygons, right and left the subject's.

FaceMesh's numbering is fixed by its published weights; every list here is checked against images
by drawing it.
"""

from __future__ import annotations

MESH_LANDMARKS = 468
LANDMARKS = 478

# Outer corner, lower lid to the inner corner, and back along the upper lid.
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
# Centre, then nasal, upper, temporal and lower edge.
RIGHT_IRIS = (468, 469, 470, 471, 472)
LEFT_IRIS = (473, 474, 475, 476, 477)
RIGHT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
LEFT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
# From the right corner along the lower lip to the left corner, and back along the upper lip.
LIPS_OUTER = (
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
    *(409, 270, 269, 267, 0, 37, 39, 40, 185),
)
LIPS_INNER = (
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
    *(415, 310, 311, 312, 13, 82, 81, 80, 191),
)
# From the middle of the forehead over the left ear and the chin.
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)

CONTOURS = {
    "right eye": RIGHT_EYE,
    "left eye": LEFT_EYE,
    "right iris": RIGHT_IRIS[1:],
    "left iris": LEFT_IRIS[1:],
    "right brow": RIGHT_BROW,
    "left brow": LEFT_BROW,
    "outer lips": LIPS_OUTER,
    "inner lips": LIPS_INNER,
    "face": FACE_OVAL,
}
