// @NAME@: draws from the sources in proportion to their weights, as evenly as can be.

#include <stdlib.h>

#include "trainer_plugin.h"

typedef struct {
  double weight;
  uint64_t drawn;
  plugin_option_u64_t length;
} source;

struct policy_mixer_t {
  source *sources;
  size_t count;
  uint64_t drawn;
  double total;
};

static bool refuse(plugin_string_t *error, text_builder *words) {
  *error = string_built(words);
  return false;
}

static bool is_source(const policy_setup_t *setup, json_text name) {
  for (size_t i = 0; i < setup->sources.len; i++) {
    if (text_equals(text_in(&setup->sources.ptr[i].name), name)) return true;
  }
  return false;
}

// The mix as the setup says, with nothing drawn; NULL with an error in words.
static policy_mixer_t *make(const policy_setup_t *setup, plugin_string_t *error) {
  json_document *settings = parse_in(&setup->settings);
  const json *weights = json_get(json_root(settings), "weights");
  for (const json *weight = json_first(weights); weight; weight = json_next(weight)) {
    json_text name = json_name(weight);
    if (is_source(setup, name)) continue;
    text_builder words = {0};
    text_add(&words, "`weights` names \"");
    text_add_bytes(&words, name.ptr, name.len);
    text_add(&words, "\", which is no source");
    refuse(error, &words);
    json_free(settings);
    return NULL;
  }
  policy_mixer_t *mixer = must_alloc(1, sizeof *mixer);
  mixer->count = setup->sources.len;
  mixer->sources = must_alloc(mixer->count, sizeof *mixer->sources);
  for (size_t i = 0; i < mixer->count; i++) {
    const policy_source_t *from = &setup->sources.ptr[i];
    double weight = json_number(json_get_text(weights, text_in(&from->name)), 1);
    mixer->sources[i] = (source){weight, 0, from->length};
    mixer->total += weight;
  }
  json_free(settings);
  return mixer;
}

// Begins.
bool policy_static_mixer_open(policy_setup_t *setup, policy_own_mixer_t *answer, plugin_string_t *error) {
  policy_mixer_t *mixer = make(setup, error);
  policy_setup_free(setup);
  if (mixer) *answer = policy_mixer_new(mixer);
  return mixer != NULL;
}

static bool is_count(const json *value) {
  double number = json_number(value, -1);
  return number >= 0 && number <= 9007199254740991.0 && number == (double)(uint64_t)number;
}

static bool take_counts(policy_mixer_t *mixer, const json *counts, plugin_string_t *error) {
  text_builder words = {0};
  bool good = json_is(counts, JSON_ARRAY);
  for (const json *count = json_first(counts); count; count = json_next(count)) good = good && is_count(count);
  if (!good) {
    text_add(&words, "the snapshot is no list of counts");
    return refuse(error, &words);
  }
  if (json_count(counts) != mixer->count) {
    text_add(&words, "the snapshot has ");
    text_add_int(&words, (int64_t)json_count(counts));
    text_add(&words, " counts, but the mix has ");
    text_add_int(&words, (int64_t)mixer->count);
    text_add(&words, " sources");
    return refuse(error, &words);
  }
  source *to = mixer->sources;
  for (const json *count = json_first(counts); count; count = json_next(count), to++) {
    to->drawn = (uint64_t)json_number(count, 0);
    mixer->drawn += to->drawn;
  }
  return true;
}

// Continues from a snapshot.
bool policy_static_mixer_restore(policy_setup_t *setup, plugin_list_u8_t *snapshot, policy_own_mixer_t *answer, plugin_string_t *error) {
  policy_mixer_t *mixer = make(setup, error);
  json_document *counts = json_parse(snapshot->ptr, snapshot->len);
  bool good = mixer && take_counts(mixer, json_root(counts), error);
  json_free(counts);
  policy_setup_free(setup);
  plugin_list_u8_free(snapshot);
  if (good) {
    *answer = policy_mixer_new(mixer);
  } else if (mixer) {
    policy_mixer_destructor(mixer);
  }
  return good;
}

// The host has let go of the mixer.
void policy_mixer_destructor(policy_mixer_t *mixer) {
  free(mixer->sources);
  free(mixer);
}

// How many draws make one pass over the mix; false if that is not known.
bool policy_method_mixer_epoch_length(policy_mixer_t *mixer, uint64_t *answer) {
  *answer = 0;
  for (size_t i = 0; i < mixer->count; i++) {
    if (!mixer->sources[i].length.is_some) return false;
    *answer += mixer->sources[i].length.val;
  }
  return true;
}

// The source that is furthest behind its share; the first of several.
static uint32_t draw(policy_mixer_t *mixer) {
  size_t best = 0;
  double furthest = 0;
  for (size_t i = 0; i < mixer->count; i++) {
    const source *one = &mixer->sources[i];
    double behind = one->weight * (double)(mixer->drawn + 1) - (double)one->drawn * mixer->total;
    if (i == 0 || behind > furthest) {
      best = i;
      furthest = behind;
    }
  }
  mixer->sources[best].drawn += 1;
  mixer->drawn += 1;
  return (uint32_t)best;
}

// The next n decisions. How they are asked for makes no difference to them.
bool policy_method_mixer_next(policy_mixer_t *mixer, uint32_t n, policy_list_draw_t *answer, plugin_string_t *error) {
  (void)error;
  *answer = (policy_list_draw_t){must_alloc(n, sizeof *answer->ptr), n};
  for (uint32_t i = 0; i < n; i++) answer->ptr[i] = (policy_draw_t){.source = draw(mixer)};
  return true;
}

// What became of the decisions; this policy does not look at it.
void policy_method_mixer_feedback(policy_mixer_t *mixer, policy_feedback_t *feedback) {
  (void)mixer;
  policy_feedback_free(feedback);
}

// The state: all that `restore` needs beside the setup.
void policy_method_mixer_snapshot(policy_mixer_t *mixer, plugin_list_u8_t *answer) {
  text_builder counts = {0};
  text_add(&counts, "[");
  for (size_t i = 0; i < mixer->count; i++) {
    if (i) text_add(&counts, ",");
    text_add_int(&counts, (int64_t)mixer->sources[i].drawn);
  }
  text_add(&counts, "]");
  *answer = (plugin_list_u8_t){(uint8_t *)counts.ptr, counts.len};
}
