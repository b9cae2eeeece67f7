// @NAME@: draws from the sources in proportion to their weights, as evenly as can be.

import { exported, refuse } from "./trainer_plugin.js";
import { fromUtf8, toUtf8 } from "./utf8.js";

/** @import { Policy, Setup } from "./types" */

class Mixer {
  /** @param {Setup} setup */
  constructor(setup, counts = undefined) {
    /** @type {Map<string, number>} */
    const weights = new Map(Object.entries(JSON.parse(setup.settings).weights ?? {}));
    const names = setup.sources.map(({ name }) => name);
    for (const name of weights.keys()) {
      if (!names.includes(name)) throw refuse(`\`weights\` names "${name}", which is no source`);
    }
    this.weights = names.map((name) => weights.get(name) ?? 1);
    this.lengths = setup.sources.map(({ length }) => length);
    this.counts = counts ?? names.map(() => 0);
    if (this.counts.length !== names.length) {
      throw refuse(`the snapshot has ${this.counts.length} counts, but the mix has ${names.length} sources`);
    }
  }

  // Begins.
  static open(setup) {
    return new Mixer(setup);
  }

  // Continues from a snapshot.
  static restore(setup, snapshot) {
    return new Mixer(setup, readCounts(snapshot));
  }

  // How many draws make one pass over the mix, if that is known.
  epochLength() {
    return this.lengths.includes(null) ? null : sum(this.lengths);
  }

  // The next n decisions. How they are asked for makes no difference to them.
  next(n) {
    return Array.from({ length: n }, () => ({ source: this.draw(), ordinal: null }));
  }

  // What became of the decisions; this policy does not look at it.
  feedback(feedback) {}

  // The state: all that `restore` needs beside the setup.
  snapshot() {
    return toUtf8(JSON.stringify(this.counts));
  }

  // The source that is furthest behind its share; the first of several.
  draw() {
    const drawn = sum(this.counts);
    const total = sum(this.weights);
    const behind = this.weights.map((weight, i) => weight * (drawn + 1) - this.counts[i] * total);
    const source = behind.indexOf(Math.max(...behind));
    this.counts[source] += 1;
    return source;
  }
}

/** @type {Policy} */
export const policy = exported({ Mixer });

function readCounts(snapshot) {
  const text = fromUtf8(snapshot);
  let counts;
  try {
    counts = JSON.parse(text);
  } catch (error) {
    counts = undefined;
  }
  if (!Array.isArray(counts) || !counts.every((n) => Number.isInteger(n) && n >= 0)) {
    throw refuse("the snapshot is no list of counts");
  }
  return counts;
}

function sum(numbers) {
  return numbers.reduce((a, b) => a + b, 0);
}
