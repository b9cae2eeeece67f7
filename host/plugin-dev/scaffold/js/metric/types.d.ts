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

/** Free generation. */
export interface Generation {
  /** The prompt, before the template. */
  conversation: Conversation;
  /** Qwen3's switch, none to leave it to the recipe. */
  enableThinking: boolean | null;
  /** How many answers to draw; 1 under greedy decoding. */
  repeats: number;
  /** The longest answer in tokens, none to leave it to the recipe. */
  maxNewTokens: number | null;
  /** Strings at which an answer ends, beside the template's stop tokens. */
  stop: string[];
}

/** Scoring of given continuations. */
export interface Likelihood {
  /** The prompt, before the template. */
  conversation: Conversation;
  /** The continuations to score, as assistant text. */
  continuations: string[];
}

/** What to ask of the model. */
export type Request =
  /** Let it write. */
  | { tag: "generate"; val: Generation }
  /** Ask how likely given texts are. */
  | { tag: "log-likelihood"; val: Likelihood }
  ;

/** What becomes of a row. */
export type Plan =
  /** The question. */
  | { tag: "ask"; val: Request }
  /** The row is fine but not for this metric; counted by reason. */
  | { tag: "skip"; val: string }
  /** The row is broken: JSON Pointer and message, as in `formatter.bad-row`. */
  | { tag: "bad"; val: [string, string] }
  ;

/** A tool call as the template's parser found it. */
export interface Call {
  /** The tool's name. */
  name: string;
  /** The arguments as the model wrote them. */
  arguments: CallArguments;
}

/** Why an answer ended. */
export type Finish = "stop" | "length" | "limit";

/** One answer of the model. */
export interface Answer {
  /** The whole output as text, reasoning and calls included. */
  raw: string;
  /** The words for the user, without reasoning and calls; after tool rounds, those of the last turn. */
  text: string;
  /** The reasoning, joined. */
  reasoning: string;
  /** Well-formed calls of the first turn that has any. */
  calls: Call[];
  /** What the parser said of malformed calls. */
  malformed: string[];
  /** Why it ended. */
  finish: Finish;
}

/** What came back for a request. */
export type Response =
  /** One answer per repeat. */
  | { tag: "answers"; val: Answer[] }
  /** Per continuation: the sum of log-probabilities, the number of tokens, and whether greedy decoding would have written it. */
  | { tag: "log-likelihoods"; val: ([number, number, boolean])[] }
  /** The sample failed before it could be scored (a tool trapped, a prompt too long). */
  | { tag: "failed"; val: string }
  ;

/** A row with its response. */
export interface Item {
  /** The row, as `prepare` saw it. */
  row: Json;
  /** The model's side. */
  response: Response;
}

/** A score's value. */
export type Value =
  /** Finite. */
  | { tag: "number"; val: number }
  /** Yes or no; counts as 1 or 0. */
  | { tag: "boolean"; val: boolean }
  /** A label. */
  | { tag: "text"; val: string }
  /** Could not be judged; the explanation says why. Aggregates say what they do with these. */
  | { tag: "unscored" }
  ;

/** One score of one sample. A metric may give several under different names. */
export interface SampleScore {
  /** Such as `correct`. */
  name: string;
  /** The value. */
  value: Value;
  /** For the reader of the report: what was expected and found. */
  explanation: string;
}

/** A summary over all samples. */
export interface Summary {
  /** Such as `accuracy`; the report calls it `<plugin>/<name>`. */
  name: string;
  /** Finite. */
  value: number;
  /** Standard error of the value, where it means something. */
  stderr: number | null;
  /** Whether more is better; none where neither is. */
  higherIsBetter: boolean | null;
}
/** Metrics are deterministic and keep no state between calls. */
export interface Metric {
  /** See `formatter.configure`. */
  configure(settings: Json): void;
  /** The version of the scoring itself: two reports compare only if it is equal. */
  scoringVersion(): string;
  /** One plan per row, in order. */
  prepare(rows: Json[]): Plan[];
  /** The scores of each item, in order. */
  score(items: Item[]): (SampleScore[])[];
  /** Sums up the scores of all samples, given in the order of the rows. */
  aggregate(samples: (SampleScore[])[]): Summary[];
}
