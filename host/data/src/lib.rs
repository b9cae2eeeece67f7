//! The way of a row: sources with provenance, seeded order, mixing policy, formatter, template, tokens, packing.
