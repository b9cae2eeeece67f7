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

/** A tool on offer. */
export interface Tool {
  /** What the model calls it. */
  name: string;
  /** What the model is told about it. */
  description: string;
  /** JSON Schema of the arguments: one object schema. The host checks newly generated calls against it. */
  parameters: Json;
  /** Whether a call can change the session's state. The host may run calls that cannot in any order. */
  mutates: boolean;
}

/** What a session starts from. */
export interface Context {
  /** The recipe's settings for the plugin, already checked; `{}` if there are none. */
  settings: Json;
  /** The episode's seed: the only randomness without a grant. */
  seed: number;
  /** The episode's clock, milliseconds since 1970 UTC. It stands still without a grant. */
  nowMs: number;
}

/** A call. */
export interface Call {
  /** The tool. */
  name: string;
  /** One JSON object, valid under the tool's schema. */
  arguments: Json;
}

/** What a call gave. A trap is neither: it fails the episode. */
export type Outcome =
  /** The result, given to the model as it stands. */
  | { tag: "ok"; val: Json }
  /** The tool refuses or fails; the model sees the words and can try again. */
  | { tag: "tool-error"; val: string }
  ;

/** One episode. */
export interface Session {
  /** Executes calls in order: one outcome per call. */
  call(calls: Call[]): Outcome[];
  /** A digest of the session's state, by which two episodes can be compared; none for tools without state. */
  stateDigest(): string | null;
}

export interface SessionClass {
  /** Begins. */
  open(context: Context): Session;
}
/**
 * A session lasts one episode (one conversation of an evaluation, or one chat), so that nothing leaks from one to the next. An
 * executor reaches only what its manifest declares and the user grants.
 */
export interface Executor {
  /** The tools under the given settings, in the order in which the model sees them. */
  tools(settings: Json): Tool[];
  Session: SessionClass;
}
