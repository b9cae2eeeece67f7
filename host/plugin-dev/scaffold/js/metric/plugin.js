// @NAME@: asks the `question` of each row, and looks for what the column `expected` says in the answer.

import { exported } from "./trainer_plugin.js";

/** @import { Message, Metric, Plan, Response, SampleScore } from "./types" */

let ignoreCase;

/** @type {Metric} */
export const metric = exported({
  // Called once in each instance, before anything else. The host has checked the settings against settings.json.
  configure(settings) {
    ignoreCase = JSON.parse(settings).ignore_case ?? false;
  },

  // To be raised with each change of the scores: reports compare only if it is equal.
  scoringVersion() {
    return "1";
  },

  // What to ask of the model: one plan per row, in order.
  prepare(rows) {
    return rows.map((row) => plan(JSON.parse(row)));
  },

  // The scores of each item, in order: here one.
  score(items) {
    return items.map(({ row, response }) => [score(JSON.parse(row), response)]);
  },

  // Sums up the scores of all samples.
  aggregate(samples) {
    const scored = samples.flat().filter(({ name, value }) => name === "contains" && value.tag === "boolean");
    if (scored.length === 0) return [];
    const right = scored.filter(({ value }) => value.tag === "boolean" && value.val);
    const share = right.length / scored.length;
    const stderr = Math.sqrt((share * (1 - share)) / scored.length);
    return [{ name: "accuracy", value: share, stderr, higherIsBetter: true }];
  },
});

/** @returns {Plan} */
function plan(row) {
  if (!isObject(row)) return { tag: "bad", val: ["", "the row is no JSON object"] };
  for (const column of ["question", "expected"]) {
    if (typeof row[column] !== "string") return { tag: "bad", val: [`/${column}`, "a string is needed"] };
  }
  const conversation = { messages: [user(row.question)], tools: [], templateArgs: null, weight: 1 };
  return {
    tag: "ask",
    val: { tag: "generate", val: { conversation, enableThinking: null, repeats: 1, maxNewTokens: null, stop: [] } },
  };
}

/** @type {(row: any, response: Response) => SampleScore} */
function score(row, response) {
  if (response.tag === "failed") return unscored(response.val);
  if (response.tag !== "answers" || response.val.length === 0) return unscored("there is no answer");
  if (!isObject(row) || typeof row.expected !== "string") return unscored("the row has no string `expected`");
  const found = folded(response.val[0].text).includes(folded(row.expected));
  return {
    name: "contains",
    value: { tag: "boolean", val: found },
    explanation: `"${row.expected}" is ${found ? "" : "not "}in the answer`,
  };
}

/** @returns {SampleScore} */
function unscored(why) {
  return { name: "contains", value: { tag: "unscored" }, explanation: why };
}

function folded(text) {
  return ignoreCase ? text.replace(/[A-Z]/g, (letter) => letter.toLowerCase()) : text;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * A question of nothing but text.
 * @returns {Message}
 */
function user(text) {
  return {
    role: "user",
    content: { tag: "text", val: text },
    reasoningContent: null,
    toolCalls: [],
    toolCallId: null,
    name: null,
    weight: null,
    spans: [],
  };
}
