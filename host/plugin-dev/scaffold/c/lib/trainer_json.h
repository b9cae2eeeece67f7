// Reading and writing JSON. The files belong to the project: change them if you like.
//
// A text is read into a document; its values are valid until the document is freed. Looking for something that is not there gives NULL,
// and every function takes NULL, so that a path can be walked without a check at each step. Texts may hold zero bytes, hence their length.
#ifndef TRAINER_JSON_H
#define TRAINER_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_type;

// A piece of UTF-8 text, not owned and not ended by a zero byte.
typedef struct {
  const char *ptr;
  size_t len;
} json_text;

typedef struct json json;
typedef struct json_document json_document;

// The document of a text, or NULL if that is no JSON (RFC 8259) or is nested more than 128 deep.
json_document *json_parse(const void *text, size_t len);
void json_free(json_document *document);
const json *json_root(const json_document *document);

bool json_is(const json *value, json_type type);
// The member of an object (the last of several with the same name), or NULL.
const json *json_get(const json *object, const char *name);
const json *json_get_text(const json *object, json_text name);
// The elements of an array, or the members of an object, in order; NULL after the last.
const json *json_first(const json *container);
const json *json_next(const json *element);
size_t json_count(const json *container);
// The name of an object's member.
json_text json_name(const json *member);
// The value, or what is given where it is of another type.
json_text json_string(const json *value, const char *otherwise);
double json_number(const json *value, double otherwise);
bool json_bool(const json *value, bool otherwise);

json_text text_of(const char *words);
bool text_equals(json_text a, json_text b);

// A text that grows.
typedef struct {
  char *ptr;
  size_t len;
  size_t capacity;
} text_builder;

void text_add(text_builder *builder, const char *words);
void text_add_bytes(text_builder *builder, const void *bytes, size_t len);
// A whole number.
void text_add_int(text_builder *builder, int64_t number);
// A JSON string with its quotes.
void text_add_quoted(text_builder *builder, json_text text);
void text_free(text_builder *builder);

// As malloc, calloc and realloc, but they never give NULL: without memory the call ends in a trap.
void *must_alloc(size_t count, size_t size);
void *must_grow(void *memory, size_t count, size_t size);

#endif
