"""What a plugin needs beside its own code. The file belongs to the project: change it if you like.

The classes in app.py are called by the host: one for the interface of the plugin's kind, marked `@interface`, and one for its resource
where it has one, marked `@resource`. The marks make exceptions readable: the host gets text and place through the log before the call ends
in a trap, which costs the row, the sample or the episode. `raise Err("words")` is no such accident: it is the error that the contract
foresees where a function may answer with one.

Modules are loaded when the component is built. In the sandbox there are no files, so import at the top of a module and never in a function.
What is printed goes to the host's log.
"""

import functools
import importlib.abc
import importlib.machinery
import inspect
import io
import sys
import time

from componentize_py_types import Err
from wit_world.imports import log as _log

__all__ = ["Err", "interface", "resource", "info", "warn"]


def interface(cls):
    """Marks the class of an interface. One object of it, made when the component is built, answers all calls of an instance."""
    the_one = cls()
    resource(cls)
    return lambda: the_one


def resource(cls):
    """Marks the class of a resource: the host holds any number of its objects."""
    for name, member in list(vars(cls).items()):
        if isinstance(member, (classmethod, staticmethod)):
            setattr(cls, name, type(member)(_reported(member.__func__)))
        elif inspect.isfunction(member):
            setattr(cls, name, _reported(member))
    return cls


def info(message):
    """Writes a line to the host's log."""
    _log.write(_log.Level.INFO, str(message))


def warn(message):
    """Writes a warning to the host's log."""
    _log.write(_log.Level.WARN, str(message))


class _Lines(io.TextIOBase):
    """A stream whose lines go to the log."""

    def __init__(self, level):
        self.level = level
        self.line = ""

    def writable(self):
        return True

    def write(self, text):
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if line:
                _log.write(self.level, line)
        return len(text)


class _Late(importlib.abc.MetaPathFinder):
    """Answers for modules that were not loaded at build time, for which Python would look for files."""

    def find_spec(self, name, path, target=None):
        raise ModuleNotFoundError(f"{name} cannot be loaded in the sandbox: import it at the top of app.py", name=name)


def _seal():
    """Called once, when the host calls for the first time."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not importlib.machinery.PathFinder] + [_Late()]
    sys.stdout, sys.stderr = _Lines(_log.Level.INFO), _Lines(_log.Level.WARN)
    for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"):
        setattr(time, name, _no_clock)


def _no_clock(*_):
    raise RuntimeError("there is no clock in the sandbox")


_depth = 0


def _reported(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        global _depth
        if importlib.machinery.PathFinder in sys.meta_path:
            _seal()
        _depth += 1
        try:
            return function(*args, **kwargs)
        except Err:
            raise
        except BaseException as error:
            if _depth == 1:
                _log.write(_log.Level.ERROR, _described(error))
                sys.stderr = io.StringIO()  # The interpreter would print the same again.
            raise
        finally:
            _depth -= 1

    return call


def _described(error):
    # Not through the module traceback: it looks for source files, and there are none in the sandbox.
    places, step = [], error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_filename != _reported.__code__.co_filename:
            places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{step.tb_lineno} in {code.co_name}")
        step = step.tb_next
    return f"{type(error).__name__}: {error} ({', '.join(places[:-5:-1])})"
