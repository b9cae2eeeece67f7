// Made from the contract in wit/. DO NOT EDIT!

/**
 * Text that holds exactly one JSON value (RFC 8259, UTF-8). Numbers and key order are kept as written, so values pass through the
 * plugins without being widened or reordered.
 */
export type Json = string;

/** The body of a message. */
export type Content =
  /** The key is absent or null (an assistant message that only calls tools). */
  | { tag: "none" }
  /** Plain text, the usual case. */
  | { tag: "text"; val: string }
  /** Any other JSON value (a list of parts, an object that a tool returned). A template decides what it means. */
  | { tag: "json"; val: Json }
  ;

/** The arguments of a tool call. */
export type CallArguments =
  /** A JSON value, as a rule an object. A template may reformat it. */
  | { tag: "json"; val: Json }
  /** The source held a string where others hold an object (OpenAI's form). A template writes it as it stands. */
  | { tag: "text"; val: string }
  ;

/** One call that an assistant message makes. */
export interface ToolCall {
  /** The call's own name, if the source has one; results refer to it through `message.tool-call-id`. */
  id: string | null;
  /** The tool's name. */
  name: string;
  /** What the tool is called with. */
  arguments: CallArguments;
}

/** A loss weight for a part of a message's text. */
export interface SpanWeight {
  /** First byte of the part, counted in the UTF-8 form of the message's text content. */
  start: number;
  /** The byte after the part's last. */
  end: number;
  /** The weight of the tokens that begin in the part; finite, not negative. */
  weight: number;
}

/** One message. */
export interface Message {
  /** `system`, `user`, `assistant`, `tool`, or whatever the source says; a template decides what it does with others. */
  role: string;
  /** The body. */
  content: Content;
  /** The reasoning, where the source keeps it apart from the content. */
  reasoningContent: string | null;
  /** The calls that an assistant message makes, in order. */
  toolCalls: ToolCall[];
  /** For a `tool` message: the `id` of the call that it answers. */
  toolCallId: string | null;
  /** For a `tool` message: the tool's name, if given. */
  name: string | null;
  /** Loss weight of the whole message. None: the recipe's rule (`train_on`) decides from the role. Finite, not negative. */
  weight: number | null;
  /** Loss weights of parts of the text content, over `weight`. Sorted, not overlapping, at character boundaries. */
  spans: SpanWeight[];
}

/** A whole conversation: one sample before it becomes text. */
export interface Conversation {
  /** In order; at least one. */
  messages: Message[];
  /** JSON Schemas of the tools on offer, each one JSON object in any form that the template knows. */
  tools: Json[];
  /** Arguments for the template beyond those of its interface: one JSON object, or none. */
  templateArgs: Json | null;
  /** A factor on every loss weight of the sample; finite, not negative. 1 is the usual. */
  weight: number;
}

/** A piece of text for the tokenizer, or of the model's output. */
export type Piece =
  /** Ordinary text. Strings in it that look like special tokens are encoded as plain text, so data cannot forge a turn. */
  | { tag: "text"; val: string }
  /** Exactly one added token of the tokenizer, by its text, such as `<|im_start|>`. An unknown one is an error. */
  | { tag: "special"; val: string }
  ;

/** A piece with its origin. */
export interface Segment {
  /** The text or the token. */
  piece: Piece;
  /** The index of the message that it comes from; none for what the template itself adds around all messages. */
  sourceMessage: number | null;
  /**
   * Whether the model writes this piece at inference (an assistant's words and the stop token after them). Under the recipe's
   * `train_on = "assistant"` only such pieces have a loss weight.
   */
  generated: boolean;
  /**
   * The loss weight, from the message's own weight and spans: 1 where the data says nothing. The host multiplies it by the
   * sample's weight, and by 0 where the recipe does not train. Finite, not negative.
   */
  weight: number;
}

/** A rendered text. Neighbouring text pieces are joined before tokenizing, so it does not matter where a template cuts them. */
export interface Rendered {
  /** In order. */
  segments: Segment[];
}

/** A prompt to render: the exact inference form. */
export interface PromptRequest {
  /** The conversation so far. */
  conversation: Conversation;
  /** Whether to open an assistant turn at the end. */
  addGenerationPrompt: boolean;
  /** Qwen3's switch. None: not given, which for Qwen3 means on. */
  enableThinking: boolean | null;
}

/** What is fixed about the template under its settings. */
export interface Description {
  /** Tokens that end an assistant's turn, the first being the one that training teaches. */
  stopTokens: string[];
  /**
   * Whether the training text of a conversation's first turns is always the beginning of the training text of the whole. The host tries
   * it on a probe before it trains; a template that says so and is caught not to be is refused.
   */
  stablePrefixes: boolean;
}

/** A call found in the output. */
export interface ParsedCall {
  /** The tool's name. */
  name: string;
  /** The arguments as the model wrote them. */
  arguments: CallArguments;
}

/** A failed call. */
export interface MalformedCall {
  /** What the model wrote. */
  raw: string;
  /** What is wrong with it, in words that the model can use. */
  message: string;
}

/** A part of the model's output. */
export type OutputPart =
  /** Words for the user. Consecutive text parts belong together. */
  | { tag: "text"; val: string }
  /** Words of the reasoning. Consecutive reasoning parts belong together. */
  | { tag: "reasoning"; val: string }
  /** A complete call. */
  | { tag: "tool-call"; val: ParsedCall }
  /** Something that set out to be a call and is none; the model can be told. */
  | { tag: "malformed"; val: MalformedCall }
  ;

/** Reads the output of one generation while it grows. */
export interface OutputParser {
  /** Takes the next pieces and gives what is certain by now. Text is never cut inside a character. */
  push(pieces: Piece[]): OutputPart[];
  /** The output has ended: gives what was held back. */
  finish(): OutputPart[];
}

export interface OutputParserClass {
  /** A parser at the beginning of an assistant's turn. `in-reasoning`: the prompt has already opened the reasoning. */
  new (inReasoning: boolean): OutputParser;
}
/** Templates are deterministic and keep no state between calls, except in an `output-parser`. */
export interface Template {
  /** See `formatter.configure`. */
  configure(settings: Json): void;
  /** What the host needs to know before rendering. */
  describe(): Description;
  /** Renders prompts exactly as the model's own template does. One answer per request; an error says which message is wrong and why. */
  renderPrompts(requests: PromptRequest[]): ({ tag: "ok"; val: Rendered } | { tag: "err"; val: string })[];
  /** Renders conversations to learn from. A conversation gives one sample, or several under settings that cut it into turns. */
  renderTraining(conversations: Conversation[]): ({ tag: "ok"; val: Rendered[] } | { tag: "err"; val: string })[];
  /** Parses whole outputs at once: one list of parts per output, as an `output-parser` would give them, joined. */
  parse(outputs: (Piece[])[]): (OutputPart[])[];
  OutputParser: OutputParserClass;
}
