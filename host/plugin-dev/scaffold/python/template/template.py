"""Where componentize-py looks for the resource of the interface `template`."""

from app import OutputParser

__all__ = ["OutputParser"]
