// @NAME@: a shopping list that the model can write on.

#include <stdlib.h>

#include "trainer_plugin.h"

typedef struct {
  plugin_string_t item;
  int64_t quantity;
} entry;

// One episode: everything that it remembers lies here.
struct executor_session_t {
  entry *entries;
  size_t count;
};

static executor_tool_t tool(const char *name, const char *description, const char *parameters, bool mutates) {
  return (executor_tool_t){string_of(name), string_of(description), string_of(parameters), mutates};
}

// The tools on offer, in the order in which the model sees them.
bool executor_tools(executor_json_t *settings, executor_list_tool_t *answer, plugin_string_t *error) {
  (void)error;  // To refuse settings, fill it and return false.
  executor_json_free(settings);
  *answer = (executor_list_tool_t){must_alloc(2, sizeof *answer->ptr), 2};
  answer->ptr[0] = tool("add_item", "Puts something on the shopping list.",
                        "{\"type\": \"object\", \"properties\": {"
                        "\"item\": {\"type\": \"string\", \"description\": \"What to buy.\"}, "
                        "\"quantity\": {\"type\": \"integer\", \"description\": \"How many; 1 if left out.\"}}, "
                        "\"required\": [\"item\"], \"additionalProperties\": false}",
                        true);
  answer->ptr[1] = tool("list_items", "Reads the shopping list.",
                        "{\"type\": \"object\", \"properties\": {}, \"additionalProperties\": false}", false);
  return true;
}

bool executor_static_session_open(executor_context_t *context, executor_own_session_t *answer, plugin_string_t *error) {
  (void)error;  // To refuse the episode, fill it and return false.
  executor_context_free(context);
  *answer = executor_session_new(must_alloc(1, sizeof(executor_session_t)));
  return true;
}

// The host has let go of the session.
void executor_session_destructor(executor_session_t *session) {
  for (size_t i = 0; i < session->count; i++) plugin_string_free(&session->entries[i].item);
  free(session->entries);
  free(session);
}

static void add_entries(text_builder *out, const executor_session_t *session) {
  text_add(out, "[");
  for (size_t i = 0; i < session->count; i++) {
    text_add(out, i ? ",{\"item\":" : "{\"item\":");
    text_add_quoted(out, text_in(&session->entries[i].item));
    text_add(out, ",\"quantity\":");
    text_add_int(out, session->entries[i].quantity);
    text_add(out, "}");
  }
  text_add(out, "]");
}

static executor_outcome_t good(text_builder *result) {
  return (executor_outcome_t){.tag = EXECUTOR_OUTCOME_OK, .val.ok = string_built(result)};
}

// A refusal in words for the model, which can try again.
static executor_outcome_t refused(const char *words) {
  return (executor_outcome_t){.tag = EXECUTOR_OUTCOME_TOOL_ERROR, .val.tool_error = string_of(words)};
}

static executor_outcome_t add_item(executor_session_t *session, const json *arguments) {
  const json *item = json_get(arguments, "item");
  double quantity = json_number(json_get(arguments, "quantity"), json_get(arguments, "quantity") ? 0 : 1);
  if (!json_is(item, JSON_STRING)) return refused("item must be a string");
  if (!(quantity >= 1 && quantity <= 9007199254740991.0)) return refused("quantity must be at least 1");
  session->entries = must_grow(session->entries, session->count + 1, sizeof *session->entries);
  session->entries[session->count++] = (entry){string_copy(json_string(item, "")), (int64_t)quantity};
  text_builder result = {0};
  text_add(&result, "{\"items\":");
  text_add_int(&result, (int64_t)session->count);
  text_add(&result, "}");
  return good(&result);
}

static executor_outcome_t list_items(const executor_session_t *session) {
  text_builder result = {0};
  text_add(&result, "{\"items\":");
  add_entries(&result, session);
  text_add(&result, "}");
  return good(&result);
}

static executor_outcome_t outcome(executor_session_t *session, const executor_call_t *call, const json *arguments) {
  json_text name = text_in(&call->name);
  if (text_equals(name, text_of("add_item"))) return add_item(session, arguments);
  if (text_equals(name, text_of("list_items"))) return list_items(session);
  text_builder words = {0};
  text_add(&words, "there is no tool ");
  text_add_bytes(&words, name.ptr, name.len);
  return (executor_outcome_t){.tag = EXECUTOR_OUTCOME_TOOL_ERROR, .val.tool_error = string_built(&words)};
}

// Executes calls in order: one outcome per call.
void executor_method_session_call(executor_session_t *session, executor_list_call_t *calls, executor_list_outcome_t *answer) {
  answer->len = calls->len;
  answer->ptr = must_alloc(calls->len, sizeof *answer->ptr);
  for (size_t i = 0; i < calls->len; i++) {
    json_document *arguments = parse_in(&calls->ptr[i].arguments);
    answer->ptr[i] = outcome(session, &calls->ptr[i], json_root(arguments));
    json_free(arguments);
  }
  executor_list_call_free(calls);
}

// A text by which two episodes can be compared; without one, return false.
bool executor_method_session_state_digest(executor_session_t *session, plugin_string_t *answer) {
  text_builder state = {0};
  add_entries(&state, session);
  *answer = string_built(&state);
  return true;
}
