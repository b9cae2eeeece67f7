//! Evaluation: prompts from rows, batched generation, metrics by plugins, a report with everything's digest.
