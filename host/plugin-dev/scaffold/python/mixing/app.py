"""@NAME@: draws from the sources in proportion to their weights, as evenly as can be."""

import json

from trainer_plugin import Err, resource
from wit_world.exports.policy import Draw


@resource
class Mixer:
    def __init__(self, setup, counts):
        weights = json.loads(setup.settings).get("weights", {})
        names = [source.name for source in setup.sources]
        for name in weights:
            if name not in names:
                raise Err(f'`weights` names "{name}", which is no source')
        self.weights = [weights.get(name, 1) for name in names]
        self.lengths = [source.length for source in setup.sources]
        self.counts = counts if counts is not None else [0] * len(names)
        if len(self.counts) != len(names):
            raise Err(f"the snapshot has {len(self.counts)} counts, but the mix has {len(names)} sources")

    @classmethod
    def open(cls, setup) -> "Mixer":
        """Begins."""
        return cls(setup, None)

    @classmethod
    def restore(cls, setup, snapshot: bytes) -> "Mixer":
        """Continues from a snapshot."""
        try:
            counts = json.loads(snapshot.decode())
        except ValueError:
            counts = None
        if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
            raise Err("the snapshot is no list of counts")
        return cls(setup, counts)

    def epoch_length(self) -> int | None:
        """How many draws make one pass over the mix, if that is known."""
        return None if None in self.lengths else sum(self.lengths)

    def next(self, n: int) -> list[Draw]:
        """The next n decisions. How they are asked for makes no difference to them."""
        return [Draw(self.draw(), ordinal=None) for _ in range(n)]

    def draw(self) -> int:
        """The source that is furthest behind its share; the first of several."""
        drawn, total = sum(self.counts), sum(self.weights)
        behind = [weight * (drawn + 1) - count * total for weight, count in zip(self.weights, self.counts)]
        source = behind.index(max(behind))
        self.counts[source] += 1
        return source

    def feedback(self, feedback) -> None:
        """What became of the decisions; this policy does not look at it."""

    def snapshot(self) -> bytes:
        """The state: all that `restore` needs beside the setup."""
        return json.dumps(self.counts, separators=(",", ":")).encode()
