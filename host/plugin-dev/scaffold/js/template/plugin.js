// @NAME@: the ChatML template. It knows text messages of any role, and neither tools nor reasoning.

import { exported, refuse } from "./trainer_plugin.js";
import { fromUtf8, toUtf8 } from "./utf8.js";

/** @import { Conversation, Piece, Rendered, Segment, Template } from "./types" */

const START = "<|im_start|>";
const END = "<|im_end|>";

// Reads one output while it grows. Nothing has to be held back, since everything is text.
class OutputParser {
  constructor(inReasoning) {}

  push(pieces) {
    return read(pieces);
  }

  finish() {
    return [];
  }
}

/** @type {Template} */
export const template = exported({
  // Called once in each instance, before anything else.
  configure(settings) {},

  describe() {
    return { stopTokens: [END], stablePrefixes: true };
  },

  // What the model reads before it writes: one answer per request.
  renderPrompts(requests) {
    return requests.map(({ conversation, addGenerationPrompt }) => answer(() => prompt(conversation, addGenerationPrompt)));
  },

  // What the model learns from: one list of texts per conversation.
  renderTraining(conversations) {
    return conversations.map((conversation) => answer(() => [prompt(conversation, false)]));
  },

  // Whole outputs at once.
  parse(outputs) {
    return outputs.map(read);
  },

  OutputParser,
});

/**
 * The answer to one of several requests: an error in one leaves the others alone.
 * @template T
 * @param {() => T} render
 * @returns {{ tag: "ok"; val: T } | { tag: "err"; val: string }}
 */
function answer(render) {
  try {
    return { tag: "ok", val: render() };
  } catch (error) {
    if (typeof error === "string") return { tag: "err", val: error };
    throw error;
  }
}

/** @type {(conversation: Conversation, openTurn: boolean) => Rendered} */
function prompt({ messages, tools }, openTurn) {
  if (tools.length > 0) throw refuse("this template knows no tools");
  if (messages.length === 0) throw refuse("the conversation has no messages");
  const segments = messages.flatMap((message, index) => turn(index, message));
  if (openTurn) segments.push(segment(special(START), null, 1), segment(text("assistant\n"), null, 1));
  return { segments };
}

// A message between its tokens. The model itself writes the assistant's words and the token after them.
function turn(index, message) {
  if (message.toolCalls.length > 0) throw refuse(`message ${index}: this template knows no tool calls`);
  if (message.reasoningContent !== null) throw refuse(`message ${index}: this template knows no reasoning`);
  if (message.content.tag === "json") throw refuse(`message ${index}: this template knows only text as content`);
  const weight = message.weight ?? 1;
  const written = message.role === "assistant";
  const content = message.content.tag === "text" ? message.content.val : "";
  const words = weighted(index, content, message.spans, weight);
  return [
    segment(special(START), index, weight),
    segment(text(`${message.role}\n`), index, weight),
    ...words.map(([part, partWeight]) => segment(text(part), index, partWeight, written)),
    segment(special(END), index, weight, written),
    segment(text("\n"), index, weight),
  ];
}

// Cuts a text where its loss weight changes. Spans count bytes of its UTF-8 form.
function weighted(index, words, spans, weight) {
  if (spans.length === 0) return words === "" ? [] : [[words, weight]];
  const bytes = toUtf8(words);
  const parts = [];
  let done = 0;
  for (const { start, end, weight: spanWeight } of spans) {
    if (start < done || end < start || bytes.length < end) throw refuse(`message ${index}: its spans do not fit its text`);
    parts.push([bytes.slice(done, start), weight], [bytes.slice(start, end), spanWeight]);
    done = end;
  }
  parts.push([bytes.slice(done), weight]);
  return parts.filter(([part]) => part.length > 0).map(([part, partWeight]) => [fromUtf8(part), partWeight]);
}

function read(pieces) {
  const words = pieces
    .filter(({ tag, val }) => tag === "text" || val !== END)
    .map(({ val }) => val)
    .join("");
  return words === "" ? [] : [text(words)];
}

/** @returns {Segment} */
function segment(piece, sourceMessage, weight, generated = false) {
  return { piece, sourceMessage, generated, weight };
}

/** @returns {{ tag: "text"; val: string }} */
function text(val) {
  return { tag: "text", val };
}

/** @returns {Piece} */
function special(val) {
  return { tag: "special", val };
}
