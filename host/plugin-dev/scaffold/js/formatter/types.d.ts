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

/** What is wrong with a row, and where. */
export interface BadRow {
  /** A JSON Pointer (RFC 6901) to the offending value, such as `/conversations/3/value`; empty for the row itself. */
  pointer: string;
  /** What is wrong with it, and what was expected. */
  message: string;
}

/** What becomes of a row. */
export type Outcome =
  /** A sample. */
  | { tag: "sample"; val: Conversation }
  /** The row is fine but not wanted. The reason is counted and reported, so keep the number of different reasons small. */
  | { tag: "skip"; val: string }
  /** The row is broken. It counts against `--max-bad-rows`. */
  | { tag: "bad"; val: BadRow }
  ;
/**
 * Formatters are deterministic and keep no state between calls: after a trap the host repeats the rows one by one in fresh
 * instances, and it spreads rows over any number of instances.
 */
export interface Formatter {
  /**
   * Called once in every instance, before anything else. `settings` is the JSON object of the recipe, already checked against the
   * plugin's settings schema; `{}` when the recipe sets nothing. An error stops the run before it starts.
   */
  configure(settings: Json): void;
  /** Formats a batch. Each row is one JSON object with the source's columns. The answer has one outcome per row, in order. */
  format(rows: Json[]): Outcome[];
}
