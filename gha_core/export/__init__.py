"""Taking an avatar away: plain 3DGS files of a frame, a face with morph targets, a web page."""
