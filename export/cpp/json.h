// JSON as far as manifests need it: a value is null, a truth value, a number, text, a list or a map.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace rfc {

// What is damaged, missing or not understood, in one sentence.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Json {
 public:
  using List = std::vector<Json>;
  using Map = std::map<std::string, Json>;

  // Parse a whole text; Error with the place where it is no JSON.
  static Json parse(std::string_view text);

  bool is_null() const { return std::holds_alternative<std::nullptr_t>(value_); }
  bool is_text() const { return std::holds_alternative<std::string>(value_); }
  bool has(const std::string& name) const { return map().count(name) > 0; }

  // The value as what it has to be; Error where it is something else.
  bool truth() const { return get<bool>("true or false"); }
  double number() const { return get<double>("a number"); }
  const std::string& text() const { return get<std::string>("text"); }
  const List& list() const { return get<List>("a list"); }
  const Map& map() const { return get<Map>("a map"); }
  std::vector<int64_t> shape() const;

  // The entry of that name; Error where there is none.
  const Json& operator[](const std::string& name) const;

 private:
  friend class Parser;

  template <class T>
  const T& get(const char* wanted) const {
    if (const T* found = std::get_if<T>(&value_)) return *found;
    throw Error(std::string("JSON: expected ") + wanted);
  }

  std::variant<std::nullptr_t, bool, double, std::string, List, Map> value_;
};

}  // namespace rfc
