"""Artifacts: the folders of files that one stage writes and later stages read."""
