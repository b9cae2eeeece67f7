// @NAME@: the ChatML template. It knows text messages of any role, and neither tools nor reasoning.

#include <stdlib.h>

#include "trainer_plugin.h"

static const char START[] = "<|im_start|>", END[] = "<|im_end|>";

struct template_output_parser_t {
  bool unused;  // Everything is text, so there is nothing to remember.
};

// Called once in each instance, before anything else.
bool template_configure(template_json_t *settings, plugin_string_t *error) {
  (void)error;  // To refuse settings, fill it and return false.
  template_json_free(settings);
  return true;
}

void template_describe(template_description_t *answer) {
  plugin_string_t *stop = must_alloc(1, sizeof *stop);
  *stop = string_of(END);
  *answer = (template_description_t){.stop_tokens = {stop, 1}, .stable_prefixes = true};
}

// Pieces with their origin, in the order of the text.
typedef struct {
  template_list_segment_t segments;
  plugin_option_u32_t source;
  float weight;
} writer;

static void put(writer *out, uint8_t tag, json_text text, bool generated, float weight) {
  out->segments.ptr = must_grow(out->segments.ptr, out->segments.len + 1, sizeof *out->segments.ptr);
  out->segments.ptr[out->segments.len++] = (template_segment_t){
      .piece = {.tag = tag, .val.text = string_copy(text)},
      .source_message = out->source,
      .generated = generated,
      .weight = weight,
  };
}

static void special(writer *out, const char *token, bool generated) {
  put(out, TEMPLATE_PIECE_SPECIAL, text_of(token), generated, out->weight);
}

static void words(writer *out, const char *before, json_text text, const char *after) {
  text_builder joined = {0};
  text_add(&joined, before);
  text_add_bytes(&joined, text.ptr, text.len);
  text_add(&joined, after);
  put(out, TEMPLATE_PIECE_TEXT, (json_text){joined.ptr, joined.len}, false, out->weight);
  text_free(&joined);
}

// A text, cut where its loss weight changes. Spans count bytes.
static bool weighted(writer *out, json_text text, const chat_list_span_weight_t *spans, bool generated) {
  size_t done = 0;
  for (size_t i = 0; i <= spans->len; i++) {
    bool last = i == spans->len;
    size_t start = last ? text.len : spans->ptr[i].start, end = last ? text.len : spans->ptr[i].end;
    if (start < done || end < start || end > text.len) return false;
    if (start > done) put(out, TEMPLATE_PIECE_TEXT, (json_text){text.ptr + done, start - done}, generated, out->weight);
    if (end > start) put(out, TEMPLATE_PIECE_TEXT, (json_text){text.ptr + start, end - start}, generated, spans->ptr[i].weight);
    done = end;
  }
  return true;
}

// A message between its tokens. The model itself writes the assistant's words and the token after them. What is wrong, or NULL.
static const char *turn(writer *out, const chat_message_t *message) {
  if (message->tool_calls.len > 0) return "this template knows no tool calls";
  if (message->reasoning_content.is_some) return "this template knows no reasoning";
  if (message->content.tag == CHAT_CONTENT_JSON) return "this template knows only text as content";
  json_text content = message->content.tag == CHAT_CONTENT_TEXT ? text_in(&message->content.val.text) : text_of("");
  bool written = text_equals(text_in(&message->role), text_of("assistant"));
  out->weight = message->weight.is_some ? message->weight.val : 1;
  special(out, START, false);
  words(out, "", text_in(&message->role), "\n");
  if (!weighted(out, content, &message->spans, written)) return "its spans do not fit its text";
  special(out, END, written);
  words(out, "", text_of(""), "\n");
  return NULL;
}

// The text of a conversation; an error in words where it has none.
static bool render(const chat_conversation_t *conversation, bool open_turn, template_rendered_t *answer, plugin_string_t *error) {
  writer out = {0};
  const char *wrong = NULL;
  text_builder explanation = {0};
  if (conversation->tools.len > 0) {
    wrong = "this template knows no tools";
  } else if (conversation->messages.len == 0) {
    wrong = "the conversation has no messages";
  }
  for (size_t i = 0; !wrong && i < conversation->messages.len; i++) {
    out.source = (plugin_option_u32_t){true, (uint32_t)i};
    wrong = turn(&out, &conversation->messages.ptr[i]);
    if (!wrong) continue;
    text_add(&explanation, "message ");
    text_add_int(&explanation, (int64_t)i);
    text_add(&explanation, ": ");
  }
  if (wrong) {
    template_list_segment_free(&out.segments);
    text_add(&explanation, wrong);
    *error = string_built(&explanation);
    return false;
  }
  if (open_turn) {
    out.source = (plugin_option_u32_t){0};
    out.weight = 1;
    special(&out, START, false);
    words(&out, "assistant", text_of(""), "\n");
  }
  answer->segments = out.segments;
  return true;
}

// What the model reads before it writes: one answer per request.
void template_render_prompts(template_list_prompt_request_t *requests, template_list_result_rendered_string_t *answer) {
  answer->len = requests->len;
  answer->ptr = must_alloc(requests->len, sizeof *answer->ptr);
  for (size_t i = 0; i < requests->len; i++) {
    template_prompt_request_t *request = &requests->ptr[i];
    template_result_rendered_string_t *one = &answer->ptr[i];
    one->is_err = !render(&request->conversation, request->add_generation_prompt, &one->val.ok, &one->val.err);
  }
  template_list_prompt_request_free(requests);
}

// What the model learns from: one list of texts per conversation.
void template_render_training(template_list_conversation_t *conversations, template_list_result_list_rendered_string_t *answer) {
  answer->len = conversations->len;
  answer->ptr = must_alloc(conversations->len, sizeof *answer->ptr);
  for (size_t i = 0; i < conversations->len; i++) {
    template_result_list_rendered_string_t *one = &answer->ptr[i];
    template_rendered_t rendered = {0};
    one->is_err = !render(&conversations->ptr[i], false, &rendered, &one->val.err);
    if (one->is_err) continue;
    one->val.ok = (template_list_rendered_t){must_alloc(1, sizeof rendered), 1};
    one->val.ok.ptr[0] = rendered;
  }
  template_list_conversation_free(conversations);
}

// All that the model writes is text, but for the token that ends its turn.
static template_list_output_part_t read(const template_list_piece_t *pieces) {
  text_builder text = {0};
  for (size_t i = 0; i < pieces->len; i++) {
    json_text piece = text_in(&pieces->ptr[i].val.text);  // A special piece has its text in the same place.
    if (pieces->ptr[i].tag == TEMPLATE_PIECE_SPECIAL && text_equals(piece, text_of(END))) continue;
    text_add_bytes(&text, piece.ptr, piece.len);
  }
  if (text.len == 0) {
    text_free(&text);
    return (template_list_output_part_t){0};
  }
  template_output_part_t *part = must_alloc(1, sizeof *part);
  *part = (template_output_part_t){.tag = TEMPLATE_OUTPUT_PART_TEXT, .val.text = string_built(&text)};
  return (template_list_output_part_t){part, 1};
}

// Whole outputs at once.
void template_parse(template_list_list_piece_t *outputs, template_list_list_output_part_t *answer) {
  answer->len = outputs->len;
  answer->ptr = must_alloc(outputs->len, sizeof *answer->ptr);
  for (size_t i = 0; i < outputs->len; i++) answer->ptr[i] = read(&outputs->ptr[i]);
  template_list_list_piece_free(outputs);
}

// Reads one output while it grows. Nothing has to be held back.
template_own_output_parser_t template_constructor_output_parser(bool in_reasoning) {
  (void)in_reasoning;
  return template_output_parser_new(must_alloc(1, sizeof(template_output_parser_t)));
}

void template_output_parser_destructor(template_output_parser_t *parser) { free(parser); }

void template_method_output_parser_push(template_output_parser_t *parser, template_list_piece_t *pieces, template_list_output_part_t *answer) {
  (void)parser;
  *answer = read(pieces);
  template_list_piece_free(pieces);
}

void template_method_output_parser_finish(template_output_parser_t *parser, template_list_output_part_t *answer) {
  (void)parser;
  *answer = (template_list_output_part_t){0};
}
