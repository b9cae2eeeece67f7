//! Black-box tests of the program: what a user types, and what comes of it. Nothing here knows how the program is built.
//!
//! Every test has a folder and a cache of its own. Runs that several tests look at are made once.

mod chat;
mod chat_terminal;
mod custom_data;
mod data;
mod determinism;
mod devices;
mod dry_run;
mod errors;
mod eval_during;
mod export;
mod export_real;
mod generate;
mod grants;
mod hub;
mod hub_real;
mod large;
mod locked;
mod main_job;
mod models;
mod own_template;
mod plugin_author;
#[path = "../../host/plugin-store/tests/common/mod.rs"]
mod plugin_common;
mod plugin_languages;
mod plugin_store;
mod plugins;
mod predictions;
mod prepared;
mod preview;
mod python;
mod resume;
mod seeing;
mod serve;
mod serve_load;
mod serve_real;
#[path = "../../host/plugin-host/tests/common/server.rs"]
mod server;
mod sources;
mod support;
mod tools;
mod versions;
