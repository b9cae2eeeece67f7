"""A formatter that asks its surroundings for everything it can think of."""
import json, os, random, socket, sys, time
import wit_world
from componentize_py_types import Err
from wit_world.exports import formatter as F
from wit_world.imports import types as T

class Formatter:
    def configure(self, settings):
        pass

    def format(self, rows):
        return [self.one(json.loads(row)) for row in rows]

    def one(self, row):
        probe = row["probe"]
        if probe == "raise":
            raise ValueError("no such thing: " + row["what"])
        if probe == "exit":
            sys.exit(3)
        if probe == "print":
            print("to standard output")
            print("to standard error", file=sys.stderr)
            return F.Outcome_Skip("printed")
        return F.Outcome_Skip(str(getattr(self, probe)()))

    def world(self):
        found = {"environment": dict(os.environ), "arguments": sys.argv[1:], "time": time.time(), "random": os.urandom(8).hex()}
        try:
            found["file"] = open("/etc/passwd").read()
        except OSError as error:
            found["file"] = type(error).__name__
        try:
            found["folder"] = os.listdir("/")
        except OSError as error:
            found["folder"] = type(error).__name__
        try:
            found["socket"] = socket.create_connection(("127.0.0.1", 80), 1)
        except Exception as error:
            found["socket"] = type(error).__name__
        before = time.monotonic()
        time.sleep(3600)
        found["slept"] = time.monotonic() - before
        return json.dumps(found)
