#include "json.h"

#include <charconv>

namespace rfc {

namespace {
constexpr int kDeepest = 200;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json whole() {
    Json found = value(0);
    space();
    if (at_ != text_.size()) fail("nothing more");
    return found;
  }

 private:
  [[noreturn]] void fail(const char* wanted) const { throw Error("JSON: expected " + std::string(wanted) + " at byte " + std::to_string(at_)); }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) ++at_;
  }

  char peek() {
    space();
    return at_ < text_.size() ? text_[at_] : '\0';
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    if (depth > kDeepest) fail("less nesting");
    Json made;
    switch (peek()) {
      case '{': made.value_ = map(depth); break;
      case '[': made.value_ = list(depth); break;
      case '"': made.value_ = text(); break;
      default:
        if (take("null")) made.value_ = nullptr;
        else if (take("true")) made.value_ = true;
        else if (take("false")) made.value_ = false;
        else made.value_ = number();
    }
    return made;
  }

  Json::Map map(int depth) {
    Json::Map made;
    ++at_;
    if (take('}')) return made;
    do {
      if (peek() != '"') fail("a name");
      std::string name = text();
      if (!take(':')) fail("':'");
      made[std::move(name)] = value(depth + 1);
    } while (take(','));
    if (!take('}')) fail("'}'");
    return made;
  }

  Json::List list(int depth) {
    Json::List made;
    ++at_;
    if (take(']')) return made;
    do made.push_back(value(depth + 1));
    while (take(','));
    if (!take(']')) fail("']'");
    return made;
  }

  double number() {
    double made = 0;
    auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), made);
    if (error != std::errc()) fail("a value");
    at_ = end - text_.data();
    return made;
  }

  std::string text() {
    std::string made;
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] != '\\') {
        made += text_[at_];
        continue;
      }
      if (++at_ == text_.size()) break;
      switch (text_[at_]) {
        case 'n': made += '\n'; break;
        case 't': made += '\t'; break;
        case 'r': made += '\r'; break;
        case 'b': made += '\b'; break;
        case 'f': made += '\f'; break;
        case 'u': character(made); break;
        default: made += text_[at_];
      }
    }
    if (at_ >= text_.size()) fail("'\"'");
    ++at_;
    return made;
  }

  unsigned hexadecimal() {
    unsigned code = 0;
    const char* begin = text_.data() + at_ + 1;
    if (at_ + 4 >= text_.size() || std::from_chars(begin, begin + 4, code, 16).ptr != begin + 4) fail("four hexadecimal digits");
    at_ += 4;
    return code;
  }

  // \uXXXX, or two of them for what lies beyond, as UTF-8.
  void character(std::string& made) {
    unsigned code = hexadecimal();
    if (code >= 0xD800 && code < 0xDC00) {
      ++at_;
      if (!take("\\u")) fail("the second half of a character");
      --at_;
      code = 0x10000 + ((code - 0xD800) << 10) + (hexadecimal() - 0xDC00);
    }
    if (code < 0x80) {
      made += static_cast<char>(code);
      return;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned char kFirst[] = {0, 0xC0, 0xE0, 0xF0};
    made += static_cast<char>(kFirst[more] | (code >> (6 * more)));
    while (more-- > 0) made += static_cast<char>(0x80 | ((code >> (6 * more)) & 0x3F));
  }

  std::string_view text_;
  size_t at_ = 0;
};

Json Json::parse(std::string_view text) { return Parser(text).whole(); }

std::vector<int64_t> Json::shape() const {
  std::vector<int64_t> sizes;
  for (const Json& size : list()) sizes.push_back(static_cast<int64_t>(size.number()));
  return sizes;
}

const Json& Json::operator[](const std::string& name) const {
  auto found = map().find(name);
  if (found == map().end()) throw Error("JSON: " + name + " is missing");
  return found->second;
}

}  // namespace rfc
