"""Where componentize-py looks for the resource of the interface `policy`."""

from app import Mixer

__all__ = ["Mixer"]
