// What a plugin needs beside its own code. The file belongs to the project: change it if you like.
//
// The host calls the objects that plugin.js exports. `exported` makes an exception in them readable: the host gets its text and place
// through the log before the call ends in a trap, which costs the row, the sample or the episode. `throw refuse("words")` is no such
// accident: it is the error that the contract foresees where a function may answer with one.

import log from "trainer:host/log@0.1.0";

/** @returns {string} What to throw for an error in the sense of the contract. */
export function refuse(message) {
  return String(message);
}

/** Writes a line to the host's log. */
export function info(message) {
  log.write("info", String(message));
}

/** Writes a warning to the host's log. */
export function warn(message) {
  log.write("warn", String(message));
}

/**
 * Wraps the functions of an interface, and the classes of its resources.
 * @template T
 * @param {T} members
 * @returns {T}
 */
export function exported(members) {
  const wrapped = /** @type {any} */ ({});
  for (const [name, member] of Object.entries(members)) {
    wrapped[name] = isClass(member) ? wrapClass(member) : reported(member);
  }
  return wrapped;
}

function isClass(member) {
  return /^class\b/.test(Function.prototype.toString.call(member));
}

function wrapClass(resource) {
  for (const owner of [resource, resource.prototype]) {
    for (const name of Object.getOwnPropertyNames(owner)) {
      const { value, writable } = Object.getOwnPropertyDescriptor(owner, name);
      if (name !== "constructor" && writable && typeof value === "function") owner[name] = reported(value);
    }
  }
  return resource;
}

function reported(call) {
  return function (...args) {
    try {
      return call.apply(this, args);
    } catch (error) {
      if (typeof error !== "string") log.write("error", described(error));
      throw error;
    }
  };
}

function described(error) {
  if (!(error instanceof Error)) return `thrown: ${JSON.stringify(error)}`;
  const places = (error.stack ?? "").split("\n").map((line) => line.trim()).filter((line) => line && !line.includes("trainer_plugin"));
  return `${error.name}: ${error.message} (${places.join(", ")})`;
}
