"""Where componentize-py looks for the resource of the interface `executor`."""

from app import Session

__all__ = ["Session"]
