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

/** A source of the run, as the recipe lists them. */
export interface Source {
  /** The name in the recipe; unique. */
  name: string;
  /** How many rows it has, where that is known before reading it. */
  length: number | null;
  /** Whether rows can be read in any order. Without it, `draw.ordinal` must be none and rows come in a windowed shuffle. */
  randomAccess: boolean;
}

/** One decision. */
export interface Draw {
  /** The index of the source. */
  source: number;
  /** None: the next row in the host's order. Otherwise the row with this position in the source's file order. */
  ordinal: number | null;
}

/** What training saw of one source in one step. */
export interface SourceLoss {
  /** The index of the source. */
  source: number;
  /** Summed weighted loss of its target tokens. */
  loss: number;
  /** Summed weight of its target tokens. */
  weight: number;
  /** Its samples in the step. */
  samples: number;
}

/**
 * The outcome of one step. Feedback of step s is given before the first draw of step s + lag, where lag is fixed for the run
 * and known from `mixer.open`, so that reading ahead does not change what a policy decides.
 */
export interface Feedback {
  /** The step, from 1. */
  step: number;
  /** The sources that took part, by ascending index. */
  sources: SourceLoss[];
}

/** What a policy starts from. */
export interface Setup {
  /** The recipe's settings for the plugin, already checked; `{}` if there are none. */
  settings: Json;
  /** All sources, in the recipe's order; at least one. */
  sources: Source[];
  /** The run's seed for this policy. It is the only randomness that a policy has. */
  seed: number;
  /** See `feedback`. */
  feedbackLag: number;
}

/** A mixing in progress. */
export interface Mixer {
  /** How many draws make one pass over the mix; none if there is no such thing. */
  epochLength(): number | null;
  /**
   * The next `n` decisions (fewer only at the end of the data). Two calls for a and b decisions give the same as one for a + b.
   * A row that is skipped or bad is replaced by asking for one more decision.
   */
  next(n: number): Draw[];
  /** Tells the policy what became of its decisions. */
  feedback(feedback: Feedback): void;
  /** The state after the decisions given so far, as bytes that `restore` takes. */
  snapshot(): Uint8Array;
}

export interface MixerClass {
  /** Begins. An error (too few sources, a setting that does not fit) stops the run before it starts. */
  open(setup: Setup): Mixer;
  /** Continues from a snapshot of the same plugin under the same setup. */
  restore(setup: Setup, snapshot: Uint8Array): Mixer;
}
/**
 * The policy picks the source; the host owns the order of rows inside a source (a permutation drawn from the run's seed for every
 * pass over it). A policy may be stateful, but only in what `snapshot` saves.
 */
export interface Policy {
  Mixer: MixerClass;
}
