"""Fitting the face model to footage: who it is, where the head is and what the face does."""

from gha_core.fitting.observations import Observations
from gha_core.fitting.tracker import Settings, Track, track_head

__all__ = ["Observations", "Settings", "Track", "track_head"]
