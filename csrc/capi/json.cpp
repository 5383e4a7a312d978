// SPDX-License-Identifier: Apache-2.0
#include "capi/json.h"

#include <locale.h>
#include <stdlib.h>
#if defined(__APPLE__)
#include <xlocale.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace ff::capi {
namespace {

constexpr int kDeepest = 64;

class Parser {
 public:
  explicit Parser(const std::string& text) : begin_(text.data()), at_(begin_), end_(begin_ + text.size()) {}

  Json whole() {
    Json value = next(0);
    skip();
    if (at_ != end_) fail("nothing more");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* want) const {
    throw std::invalid_argument(std::string("metadata: expected ") + want + " at byte " + std::to_string(at_ - begin_));
  }
  void skip() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }
  bool take(char c) {
    skip();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }
  bool word(const char* w) {
    const size_t length = std::strlen(w);
    if (static_cast<size_t>(end_ - at_) < length || std::memcmp(at_, w, length) != 0) return false;
    at_ += length;
    return true;
  }

  Json next(int depth) {
    if (depth > kDeepest) fail("at most 64 lists and objects within each other");
    skip();
    Json value;
    if (take('{')) return object(depth);
    if (take('[')) return list(depth);
    if (at_ != end_ && *at_ == '"') {
      value.kind = Json::Kind::text, value.text = text();
    } else if (word("true")) {
      value.kind = Json::Kind::boolean, value.truth = true;
    } else if (word("false")) {
      value.kind = Json::Kind::boolean;
    } else if (!word("null")) {
      value.kind = Json::Kind::number, value.number = number();
    }
    return value;
  }

  Json object(int depth) {
    Json value;
    value.kind = Json::Kind::object;
    if (take('}')) return value;
    do {
      skip();
      std::string name = text();
      if (!take(':')) fail("a colon");
      value.members.emplace_back(std::move(name), next(depth + 1));
    } while (take(','));
    if (!take('}')) fail("a comma or }");
    return value;
  }

  Json list(int depth) {
    Json value;
    value.kind = Json::Kind::list;
    if (take(']')) return value;
    do value.items.push_back(next(depth + 1));
    while (take(','));
    if (!take(']')) fail("a comma or ]");
    return value;
  }

  double number() {
    if (word("NaN")) return std::numeric_limits<double>::quiet_NaN();
    const bool negative = at_ != end_ && *at_ == '-';
    const char* first = at_;
    if (negative) ++at_;
    if (word("Infinity")) return negative ? -HUGE_VAL : HUGE_VAL;
    const char* zero = at_;
    if (!digits()) fail("a value");
    if (*zero == '0' && at_ - zero > 1) fail("a number without zeros before it");
    if (at_ != end_ && *at_ == '.' && (++at_, !digits())) fail("a digit");
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
      ++at_;
      if (at_ != end_ && (*at_ == '+' || *at_ == '-')) ++at_;
      if (!digits()) fail("a digit");
    }
    // strtod alone would read the decimal point of the process's locale.
    static const locale_t plain = newlocale(LC_ALL_MASK, "C", nullptr);
    return strtod_l(std::string(first, at_).c_str(), nullptr, plain);
  }
  bool digits() {
    const char* first = at_;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return at_ != first;
  }

  std::string text() {
    if (at_ == end_ || *at_ != '"') fail("a string");
    ++at_;
    std::string value;
    for (;;) {
      if (at_ == end_) fail("the end of a string");
      const auto c = static_cast<unsigned char>(*at_);
      if (c == '"') break;
      if (c < 0x20) fail("no control character");
      if (c == '\\')
        ++at_, escaped(value);
      else
        character(value);
    }
    ++at_;
    return value;
  }

  void escaped(std::string& to) {
    static const char kNames[] = "\"\\/bfnrt", kValues[] = "\"\\/\b\f\n\r\t";
    if (at_ == end_) fail("an escape");
    if (*at_ == 'u') {
      ++at_;
      uint32_t code = unit();
      if (code >= 0xD800 && code < 0xDC00 && word("\\u")) {
        const uint32_t low = unit();
        if (low < 0xDC00 || low > 0xDFFF) fail("the second half of a character");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      }
      if (code >= 0xD800 && code <= 0xDFFF) fail("a whole character");
      append(to, code);
      return;
    }
    const char* found = *at_ ? std::strchr(kNames, *at_) : nullptr;
    if (!found) fail("an escape");
    to += kValues[found - kNames];
    ++at_;
  }

  uint32_t unit() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ == end_ ? ' ' : *at_;
      if (c >= '0' && c <= '9')
        value = value * 16 + static_cast<uint32_t>(c - '0');
      else if ((c | 32) >= 'a' && (c | 32) <= 'f')
        value = value * 16 + static_cast<uint32_t>((c | 32) - 'a' + 10);
      else
        fail("four hexadecimal digits");
    }
    return value;
  }

  static void append(std::string& to, uint32_t code) {
    const auto byte = [&](uint32_t b) { to += static_cast<char>(b); };
    if (code < 0x80) return byte(code);
    if (code < 0x800) {
      byte(0xC0 | code >> 6);
    } else if (code < 0x10000) {
      byte(0xE0 | code >> 12), byte(0x80 | (code >> 6 & 63));
    } else {
      byte(0xF0 | code >> 18), byte(0x80 | (code >> 12 & 63)), byte(0x80 | (code >> 6 & 63));
    }
    byte(0x80 | (code & 63));
  }

  // One character of UTF-8, in its shortest form and no half of a pair.
  void character(std::string& to) {
    const auto first = static_cast<unsigned char>(*at_);
    const int more = first < 0x80 ? 0 : first < 0xC2 ? -1 : first < 0xE0 ? 1 : first < 0xF0 ? 2 : first < 0xF5 ? 3 : -1;
    if (more < 0 || end_ - at_ <= more) fail("UTF-8");
    uint32_t code = more ? first & (0x3Fu >> more) : first;
    for (int i = 1; i <= more; ++i) {
      const auto c = static_cast<unsigned char>(at_[i]);
      if ((c & 0xC0) != 0x80) fail("UTF-8");
      code = code << 6 | (c & 63u);
    }
    static const uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (code < kLeast[more] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) fail("UTF-8");
    to.append(at_, static_cast<size_t>(more) + 1);
    at_ += more + 1;
  }

  const char *begin_, *at_, *end_;
};

}  // namespace

const Json& Json::operator[](const char* name) const {
  static const Json null;
  for (auto member = members.rbegin(); member != members.rend(); ++member)
    if (member->first == name) return member->second;
  return null;
}

Json parse_json(const std::string& text) { return Parser(text).whole(); }

}  // namespace ff::capi
