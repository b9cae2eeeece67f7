#include "trainer_json.h"

#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 128
#define BLOCK 4096

struct json {
  json_type type;
  bool boolean;
  double number;
  json_text string;  // the characters of a string
  json_text name;    // of a member
  json *first;       // of a container
  json *next;        // in the same container
  size_t count;
};

// Memory of a document: blocks that are freed together.
typedef struct block {
  struct block *before;
  size_t used;
  size_t size;
} block;

struct json_document {
  json *root;
  block *blocks;
};

typedef struct {
  const char *at;
  const char *end;
  json_document *document;
} reader;

void *must_alloc(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size ? size : 1);
  if (!memory) abort();
  return memory;
}

void *must_grow(void *memory, size_t count, size_t size) {
  if (size && count > SIZE_MAX / size) abort();
  size_t bytes = count * size;
  memory = realloc(memory, bytes ? bytes : 1);
  if (!memory) abort();
  return memory;
}

static void *take(json_document *document, size_t size) {
  if (size > SIZE_MAX - 2 * BLOCK) abort();
  size = (size + 7) & ~(size_t)7;
  block *last = document->blocks;
  if (!last || last->size - last->used < size) {
    size_t room = size > BLOCK ? size : BLOCK;
    block *fresh = must_alloc(1, sizeof(block) + room);
    *fresh = (block){.before = last, .used = 0, .size = room};
    document->blocks = last = fresh;
  }
  void *memory = (char *)(last + 1) + last->used;
  last->used += size;
  return memory;
}

static void skip_space(reader *r) {
  while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')) r->at++;
}

static bool word(reader *r, const char *expected) {
  size_t len = strlen(expected);
  if ((size_t)(r->end - r->at) < len || memcmp(r->at, expected, len) != 0) return false;
  r->at += len;
  return true;
}

static bool digits(reader *r) {
  const char *start = r->at;
  while (r->at < r->end && *r->at >= '0' && *r->at <= '9') r->at++;
  return r->at > start;
}

static bool read_number(reader *r, json *value) {
  const char *start = r->at;
  if (r->at < r->end && *r->at == '-') r->at++;
  if (r->at < r->end && *r->at == '0') {
    r->at++;
  } else if (!digits(r)) {
    return false;
  }
  if (r->at < r->end && *r->at == '.') {
    r->at++;
    if (!digits(r)) return false;
  }
  if (r->at < r->end && (*r->at == 'e' || *r->at == 'E')) {
    r->at++;
    if (r->at < r->end && (*r->at == '+' || *r->at == '-')) r->at++;
    if (!digits(r)) return false;
  }
  // strtod needs a zero byte at the end.
  size_t len = (size_t)(r->at - start);
  char *copy = must_alloc(len + 1, 1);
  memcpy(copy, start, len);
  value->type = JSON_NUMBER;
  value->number = strtod(copy, NULL);
  free(copy);
  return true;
}

static bool read_hex(reader *r, uint32_t *unit) {
  *unit = 0;
  for (int i = 0; i < 4; i++, r->at++) {
    if (r->at == r->end) return false;
    char c = *r->at;
    uint32_t digit;
    if (c >= '0' && c <= '9') {
      digit = (uint32_t)(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = (uint32_t)(c - 'a' + 10);
    } else if (c >= 'A' && c <= 'F') {
      digit = (uint32_t)(c - 'A' + 10);
    } else {
      return false;
    }
    *unit = *unit * 16 + digit;
  }
  return true;
}

static size_t put_utf8(char *out, uint32_t c) {
  if (c < 0x80) {
    out[0] = (char)c;
    return 1;
  }
  if (c < 0x800) {
    out[0] = (char)(0xc0 | c >> 6);
    out[1] = (char)(0x80 | (c & 0x3f));
    return 2;
  }
  if (c < 0x10000) {
    out[0] = (char)(0xe0 | c >> 12);
    out[1] = (char)(0x80 | (c >> 6 & 0x3f));
    out[2] = (char)(0x80 | (c & 0x3f));
    return 3;
  }
  out[0] = (char)(0xf0 | c >> 18);
  out[1] = (char)(0x80 | (c >> 12 & 0x3f));
  out[2] = (char)(0x80 | (c >> 6 & 0x3f));
  out[3] = (char)(0x80 | (c & 0x3f));
  return 4;
}

// After `\u`. Halves of a pair that stand alone become U+FFFD.
static bool read_escaped_unit(reader *r, uint32_t *character) {
  uint32_t unit;
  if (!read_hex(r, &unit)) return false;
  *character = unit;
  if (unit < 0xd800 || unit > 0xdfff) return true;
  *character = 0xfffd;
  if (unit > 0xdbff || r->end - r->at < 6 || r->at[0] != '\\' || r->at[1] != 'u') return true;
  reader ahead = *r;
  ahead.at += 2;
  uint32_t low;
  if (!read_hex(&ahead, &low)) return false;
  if (low >= 0xdc00 && low <= 0xdfff) {
    r->at = ahead.at;
    *character = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
  }
  return true;
}

static bool read_string(reader *r, json_text *text) {
  if (r->at == r->end || *r->at != '"') return false;
  r->at++;
  const char *close = r->at;
  while (close < r->end && *close != '"') close += *close == '\\' ? 2 : 1;
  if (close >= r->end) return false;
  // What is written without escapes is never longer than with them.
  char *out = take(r->document, (size_t)(close - r->at) + 1);
  size_t len = 0;
  while (r->at < r->end && *r->at != '"') {
    unsigned char c = (unsigned char)*r->at++;
    if (c < 0x20) return false;
    if (c != '\\') {
      out[len++] = (char)c;
      continue;
    }
    if (r->at == r->end) return false;
    uint32_t character;
    switch (*r->at++) {
      case '"': character = '"'; break;
      case '\\': character = '\\'; break;
      case '/': character = '/'; break;
      case 'b': character = '\b'; break;
      case 'f': character = '\f'; break;
      case 'n': character = '\n'; break;
      case 'r': character = '\r'; break;
      case 't': character = '\t'; break;
      case 'u':
        if (!read_escaped_unit(r, &character)) return false;
        break;
      default: return false;
    }
    len += put_utf8(out + len, character);
  }
  if (r->at == r->end) return false;
  r->at++;
  *text = (json_text){out, len};
  return true;
}

static json *read_value(reader *r, int depth);

static bool read_container(reader *r, json *value, int depth) {
  bool object = *r->at == '{';
  char close = object ? '}' : ']';
  value->type = object ? JSON_OBJECT : JSON_ARRAY;
  r->at++;
  skip_space(r);
  if (r->at < r->end && *r->at == close) {
    r->at++;
    return true;
  }
  json **link = &value->first;
  for (;;) {
    json_text name = {0};
    skip_space(r);
    if (object) {
      if (!read_string(r, &name)) return false;
      skip_space(r);
      if (!word(r, ":")) return false;
    }
    json *element = read_value(r, depth + 1);
    if (!element) return false;
    element->name = name;
    *link = element;
    link = &element->next;
    value->count++;
    skip_space(r);
    if (r->at == r->end) return false;
    if (*r->at == close) {
      r->at++;
      return true;
    }
    if (!word(r, ",")) return false;
  }
}

static json *read_value(reader *r, int depth) {
  skip_space(r);
  if (depth > MAX_DEPTH || r->at == r->end) return NULL;
  json *value = take(r->document, sizeof(json));
  *value = (json){0};
  bool good;
  switch (*r->at) {
    case '{':
    case '[': good = read_container(r, value, depth); break;
    case '"':
      value->type = JSON_STRING;
      good = read_string(r, &value->string);
      break;
    case 't':
      value->type = JSON_BOOL;
      value->boolean = true;
      good = word(r, "true");
      break;
    case 'f':
      value->type = JSON_BOOL;
      good = word(r, "false");
      break;
    case 'n': good = word(r, "null"); break;
    default: good = read_number(r, value);
  }
  return good ? value : NULL;
}

static bool is_utf8(const unsigned char *at, const unsigned char *end) {
  while (at < end) {
    unsigned char c = *at++;
    if (c < 0x80) continue;
    int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    if (c < 0xc2 || c > 0xf4 || end - at < more) return false;
    // The second byte decides about overlong forms, halves of pairs and what lies beyond U+10FFFF.
    if ((c == 0xe0 && at[0] < 0xa0) || (c == 0xed && at[0] > 0x9f) || (c == 0xf0 && at[0] < 0x90) || (c == 0xf4 && at[0] > 0x8f)) return false;
    for (; more > 0; more--) {
      if ((*at++ & 0xc0) != 0x80) return false;
    }
  }
  return true;
}

json_document *json_parse(const void *text, size_t len) {
  if (len == 0 || !is_utf8(text, (const unsigned char *)text + len)) return NULL;
  json_document *document = must_alloc(1, sizeof(json_document));
  reader r = {text, (const char *)text + len, document};
  document->root = read_value(&r, 0);
  skip_space(&r);
  if (document->root && r.at == r.end) return document;
  json_free(document);
  return NULL;
}

void json_free(json_document *document) {
  if (!document) return;
  for (block *b = document->blocks; b;) {
    block *before = b->before;
    free(b);
    b = before;
  }
  free(document);
}

const json *json_root(const json_document *document) { return document ? document->root : NULL; }

bool json_is(const json *value, json_type type) { return value && value->type == type; }

const json *json_get_text(const json *object, json_text name) {
  const json *found = NULL;
  if (!json_is(object, JSON_OBJECT)) return NULL;
  for (const json *member = object->first; member; member = member->next) {
    if (text_equals(member->name, name)) found = member;
  }
  return found;
}

const json *json_get(const json *object, const char *name) { return json_get_text(object, text_of(name)); }

const json *json_first(const json *container) { return container ? container->first : NULL; }

const json *json_next(const json *element) { return element ? element->next : NULL; }

size_t json_count(const json *container) { return container ? container->count : 0; }

json_text json_name(const json *member) { return member ? member->name : (json_text){0}; }

json_text json_string(const json *value, const char *otherwise) {
  return json_is(value, JSON_STRING) ? value->string : text_of(otherwise);
}

double json_number(const json *value, double otherwise) { return json_is(value, JSON_NUMBER) ? value->number : otherwise; }

bool json_bool(const json *value, bool otherwise) { return json_is(value, JSON_BOOL) ? value->boolean : otherwise; }

json_text text_of(const char *words) { return (json_text){words, strlen(words)}; }

bool text_equals(json_text a, json_text b) { return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0); }

void text_add_bytes(text_builder *builder, const void *bytes, size_t len) {
  if (len > builder->capacity - builder->len) {
    if (len > SIZE_MAX / 2 - builder->capacity) abort();
    builder->capacity = 2 * builder->capacity + len;
    builder->ptr = must_grow(builder->ptr, builder->capacity, 1);
  }
  if (len) memcpy(builder->ptr + builder->len, bytes, len);
  builder->len += len;
}

void text_add(text_builder *builder, const char *words) { text_add_bytes(builder, words, strlen(words)); }

void text_add_int(text_builder *builder, int64_t number) {
  char digits[24];
  char *at = digits + sizeof digits;
  uint64_t rest = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
  do {
    *--at = (char)('0' + rest % 10);
    rest /= 10;
  } while (rest);
  if (number < 0) *--at = '-';
  text_add_bytes(builder, at, (size_t)(digits + sizeof digits - at));
}

void text_add_quoted(text_builder *builder, json_text text) {
  static const char hex[] = "0123456789abcdef";
  text_add(builder, "\"");
  for (size_t i = 0; i < text.len; i++) {
    unsigned char c = (unsigned char)text.ptr[i];
    switch (c) {
      case '"': text_add(builder, "\\\""); break;
      case '\\': text_add(builder, "\\\\"); break;
      case '\n': text_add(builder, "\\n"); break;
      case '\r': text_add(builder, "\\r"); break;
      case '\t': text_add(builder, "\\t"); break;
      default:
        if (c < 0x20) {
          char escape[] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
          text_add_bytes(builder, escape, sizeof escape);
        } else {
          text_add_bytes(builder, &c, 1);
        }
    }
  }
  text_add(builder, "\"");
}

void text_free(text_builder *builder) {
  free(builder->ptr);
  *builder = (text_builder){0};
}
