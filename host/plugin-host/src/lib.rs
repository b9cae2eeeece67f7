//! Runs plugins: WebAssembly components found by their type, linked to nothing by default, limited in everything, compiled in a child process.
