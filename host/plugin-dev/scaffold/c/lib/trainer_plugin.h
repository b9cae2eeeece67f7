// What a plugin needs beside its own code. The file belongs to the project: change it if you like.
//
// Who frees what: the arguments of an exported function are its own, and it frees them before it returns (`..._free` in plugin.h). What it
// returns is freed by the bindings after the host has read it, so every string and list in it comes from malloc: `string_of` and its like
// copy. What is written to stderr or stdout ends in the host's log.
#ifndef TRAINER_PLUGIN_H
#define TRAINER_PLUGIN_H

#include "plugin.h"
#include "trainer_json.h"

// A copy.
static inline plugin_string_t string_copy(json_text text) {
  plugin_string_t copy;
  plugin_string_dup_n(&copy, text.ptr ? text.ptr : "", text.len);
  return copy;
}

// A copy of a text that ends with a zero byte.
static inline plugin_string_t string_of(const char *words) { return string_copy(text_of(words)); }

// A built text, which needs no copy.
static inline plugin_string_t string_built(text_builder *builder) {
  plugin_string_t built = {(uint8_t *)builder->ptr, builder->len};
  *builder = (text_builder){0};
  return built;
}

// What an argument holds, valid until that is freed.
static inline json_text text_in(const plugin_string_t *string) { return (json_text){(const char *)string->ptr, string->len}; }

// The document of a JSON argument.
static inline json_document *parse_in(const plugin_string_t *string) { return json_parse(string->ptr, string->len); }

// Ends the call with words for the user, because of something that must not happen. It costs the row, the sample or the episode.
static inline _Noreturn void fail(const char *words) {
  plugin_string_t message = string_of(words);
  host_log_write(HOST_LOG_LEVEL_ERROR, &message);
  __builtin_trap();
}

#endif
