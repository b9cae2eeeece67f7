/** What the host offers to every plugin. */
declare module "trainer:host/log@0.1.0" {
  export type Level = "trace" | "debug" | "info" | "warn" | "error";
  const log: {
    /** Writes one line to the host's log. */
    write(level: Level, message: string): void;
  };
  export default log;
}
