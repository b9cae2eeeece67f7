// @NAME@: rows with the columns `question` and `answer` become conversations.

import { exported } from "./trainer_plugin.js";

/** @import { Formatter, Message, Outcome } from "./types" */

/** @type {string | undefined} */
let system;

/** @type {Formatter} */
export const formatter = exported({
  // Called once in each instance, before anything else. The host has checked the settings against settings.json.
  configure(settings) {
    system = JSON.parse(settings).system;
  },

  // One outcome per row, in order. Each row is a JSON object.
  format(rows) {
    return rows.map((row) => outcome(JSON.parse(row)));
  },
});

/** @returns {Outcome} */
function outcome(row) {
  if (typeof row !== "object" || row === null || Array.isArray(row)) return bad("", "the row is no JSON object");
  for (const column of ["question", "answer"]) {
    if (typeof row[column] !== "string") return bad(`/${column}`, "a string is needed");
  }
  if (row.answer === "") return { tag: "skip", val: "no answer" };
  const messages = [message("user", row.question), message("assistant", row.answer)];
  if (system !== undefined) messages.unshift(message("system", system));
  return { tag: "sample", val: { messages, tools: [], templateArgs: null, weight: 1 } };
}

/** @returns {Outcome} */
function bad(pointer, message) {
  return { tag: "bad", val: { pointer, message } };
}

/**
 * A message of nothing but text. Without a weight, the recipe decides what is learnt from: as a rule the assistant's words.
 * @returns {Message}
 */
function message(role, text) {
  return {
    role,
    content: { tag: "text", val: text },
    reasoningContent: null,
    toolCalls: [],
    toolCallId: null,
    name: null,
    weight: null,
    spans: [],
  };
}
