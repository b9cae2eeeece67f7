// @NAME@: asks the `question` of each row, and looks for what the column `expected` says in the answer.

#include <math.h>
#include <string.h>

#include "trainer_plugin.h"

static bool ignore_case;

// Called once in each instance, before anything else. The host has checked the settings against settings.json.
bool metric_configure(metric_json_t *settings, plugin_string_t *error) {
  (void)error;  // To refuse settings, fill it and return false.
  json_document *document = parse_in(settings);
  ignore_case = json_bool(json_get(json_root(document), "ignore_case"), false);
  json_free(document);
  metric_json_free(settings);
  return true;
}

// To be raised with each change of the scores: reports compare only if it is equal.
void metric_scoring_version(plugin_string_t *answer) { *answer = string_of("1"); }

static metric_plan_t bad(const char *pointer, const char *message) {
  return (metric_plan_t){.tag = METRIC_PLAN_BAD, .val.bad = {string_of(pointer), string_of(message)}};
}

static metric_plan_t plan(const json *row) {
  const json *question = json_get(row, "question");
  if (!json_is(row, JSON_OBJECT)) return bad("", "the row is no JSON object");
  if (!json_is(question, JSON_STRING)) return bad("/question", "a string is needed");
  if (!json_is(json_get(row, "expected"), JSON_STRING)) return bad("/expected", "a string is needed");
  chat_message_t *user = must_alloc(1, sizeof *user);
  *user = (chat_message_t){
      .role = string_of("user"),
      .content = {.tag = CHAT_CONTENT_TEXT, .val.text = string_copy(json_string(question, ""))},
  };
  return (metric_plan_t){
      .tag = METRIC_PLAN_ASK,
      .val.ask = {
          .tag = METRIC_REQUEST_GENERATE,
          .val.generate = {.conversation = {.messages = {user, 1}, .weight = 1}, .repeats = 1},
      },
  };
}

// What to ask of the model: one plan per row, in order.
void metric_prepare(metric_list_json_t *rows, metric_list_plan_t *answer) {
  answer->len = rows->len;
  answer->ptr = must_alloc(rows->len, sizeof *answer->ptr);
  for (size_t i = 0; i < rows->len; i++) {
    json_document *row = parse_in(&rows->ptr[i]);
    answer->ptr[i] = plan(json_root(row));
    json_free(row);
  }
  metric_list_json_free(rows);
}

static char folded(char c) { return ignore_case && c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c; }

static bool contains(json_text text, json_text words) {
  for (size_t start = 0; start + words.len <= text.len; start++) {
    size_t same = 0;
    while (same < words.len && folded(text.ptr[start + same]) == folded(words.ptr[same])) same++;
    if (same == words.len) return true;
  }
  return false;
}

static metric_sample_score_t unscored(json_text why) {
  return (metric_sample_score_t){string_of("contains"), {.tag = METRIC_VALUE_UNSCORED}, string_copy(why)};
}

static metric_sample_score_t score(const json *row, const metric_response_t *response) {
  if (response->tag == METRIC_RESPONSE_FAILED) return unscored(text_in(&response->val.failed));
  if (response->tag != METRIC_RESPONSE_ANSWERS || response->val.answers.len == 0) return unscored(text_of("there is no answer"));
  const json *expected = json_get(row, "expected");
  if (!json_is(expected, JSON_STRING)) return unscored(text_of("the row has no string `expected`"));
  json_text words = json_string(expected, "");
  bool found = contains(text_in(&response->val.answers.ptr[0].text), words);
  text_builder explanation = {0};
  text_add(&explanation, "\"");
  text_add_bytes(&explanation, words.ptr, words.len);
  text_add(&explanation, found ? "\" is in the answer" : "\" is not in the answer");
  return (metric_sample_score_t){
      string_of("contains"),
      {.tag = METRIC_VALUE_BOOLEAN, .val.boolean = found},
      string_built(&explanation),
  };
}

// The scores of each item, in order: here one.
void metric_score(metric_list_item_t *items, metric_list_list_sample_score_t *answer) {
  answer->len = items->len;
  answer->ptr = must_alloc(items->len, sizeof *answer->ptr);
  for (size_t i = 0; i < items->len; i++) {
    json_document *row = parse_in(&items->ptr[i].row);
    metric_list_sample_score_t one = {must_alloc(1, sizeof *one.ptr), 1};
    one.ptr[0] = score(json_root(row), &items->ptr[i].response);
    answer->ptr[i] = one;
    json_free(row);
  }
  metric_list_item_free(items);
}

// Sums up the scores of all samples.
bool metric_aggregate(metric_list_list_sample_score_t *samples, metric_list_summary_t *answer, plugin_string_t *error) {
  (void)error;  // To refuse the scores, fill it and return false.
  size_t scored = 0, right = 0;
  for (size_t i = 0; i < samples->len; i++) {
    for (size_t j = 0; j < samples->ptr[i].len; j++) {
      const metric_sample_score_t *one = &samples->ptr[i].ptr[j];
      if (one->value.tag != METRIC_VALUE_BOOLEAN || !text_equals(text_in(&one->name), text_of("contains"))) continue;
      scored += 1;
      right += one->value.val.boolean;
    }
  }
  metric_list_list_sample_score_free(samples);
  *answer = (metric_list_summary_t){0};
  if (scored == 0) return true;
  double share = (double)right / (double)scored;
  answer->len = 1;
  answer->ptr = must_alloc(1, sizeof *answer->ptr);
  answer->ptr[0] = (metric_summary_t){
      .name = string_of("accuracy"),
      .value = share,
      .stderr_ = {true, sqrt(share * (1 - share) / (double)scored)},
      .higher_is_better = {true, true},
  };
  return true;
}
