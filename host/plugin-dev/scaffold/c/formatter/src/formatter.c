// @NAME@: rows with the columns `question` and `answer` become conversations.

#include "trainer_plugin.h"

// The setting `system`; without one, no text.
static plugin_string_t system_words;

// Called once in each instance, before anything else. The host has checked the settings against settings.json.
bool formatter_configure(formatter_json_t *settings, plugin_string_t *error) {
  (void)error;  // To refuse settings, fill it and return false.
  json_document *document = parse_in(settings);
  system_words = string_copy(json_string(json_get(json_root(document), "system"), ""));
  json_free(document);
  formatter_json_free(settings);
  return true;
}

static formatter_outcome_t bad(const char *pointer, const char *message) {
  return (formatter_outcome_t){
      .tag = FORMATTER_OUTCOME_BAD,
      .val.bad = {string_of(pointer), string_of(message)},
  };
}

// A message of nothing but text. Without a weight, the recipe decides what is learnt from: as a rule the assistant's words.
static chat_message_t message(const char *role, json_text text) {
  return (chat_message_t){
      .role = string_of(role),
      .content = {.tag = CHAT_CONTENT_TEXT, .val.text = string_copy(text)},
  };
}

static formatter_outcome_t outcome(const json *row) {
  const json *question = json_get(row, "question");
  const json *answer = json_get(row, "answer");
  if (!json_is(row, JSON_OBJECT)) return bad("", "the row is no JSON object");
  if (!json_is(question, JSON_STRING)) return bad("/question", "a string is needed");
  if (!json_is(answer, JSON_STRING)) return bad("/answer", "a string is needed");
  if (json_string(answer, "").len == 0) {
    return (formatter_outcome_t){.tag = FORMATTER_OUTCOME_SKIP, .val.skip = string_of("no answer")};
  }
  chat_message_t *messages = must_alloc(3, sizeof *messages);
  size_t count = 0;
  if (system_words.len > 0) messages[count++] = message("system", text_in(&system_words));
  messages[count++] = message("user", json_string(question, ""));
  messages[count++] = message("assistant", json_string(answer, ""));
  return (formatter_outcome_t){
      .tag = FORMATTER_OUTCOME_SAMPLE,
      .val.sample = {.messages = {messages, count}, .weight = 1},
  };
}

// One outcome per row, in order. Each row is a JSON object.
void formatter_format(formatter_list_json_t *rows, formatter_list_outcome_t *answer) {
  answer->len = rows->len;
  answer->ptr = must_alloc(rows->len, sizeof *answer->ptr);
  for (size_t i = 0; i < rows->len; i++) {
    json_document *row = parse_in(&rows->ptr[i]);
    answer->ptr[i] = outcome(json_root(row));
    json_free(row);
  }
  formatter_list_json_free(rows);
}
