"""The avatar: Gaussians on a neutral head that networks move, colour and turn into pictures."""

from gha_core.avatar.avatar import Avatar

__all__ = ["Avatar"]
