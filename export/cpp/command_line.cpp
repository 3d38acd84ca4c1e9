#include "command_line.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <sstream>

namespace rfc {

namespace {

template <typename Read>
auto parsed(const std::string& option, const std::string& value, Read read) {
  try {
    size_t end = 0;
    const auto number = read(value, &end);
    if (end == value.size()) return number;
  } catch (const std::logic_error&) {
  }
  throw Error(option + ": expected a number, got " + value);
}

}  // namespace

CommandLine::CommandLine(int argc, char** argv, const std::string& usage, std::map<std::string, std::string> defaults)
    : values_(std::move(defaults)) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) != 0) {
      folder_ = name;
      continue;
    }
    if (!values_.count(name)) throw Error(name + ": no such option; usage: " + usage);
    if (++i == argc) throw Error(name + ": expected a value");
    values_[name] = argv[i];
  }
  if (folder_.empty()) throw Error("usage: " + usage);
}

double CommandLine::number(const std::string& option) const {
  return parsed(option, text(option), [](const std::string& value, size_t* end) { return std::stod(value, end); });
}

std::vector<int64_t> CommandLine::integers(const std::string& option) const {
  std::vector<int64_t> found;
  std::istringstream list(text(option));
  for (std::string one; std::getline(list, one, ',');)
    found.push_back(parsed(option, one, [](const std::string& value, size_t* end) { return int64_t{std::stoll(value, end)}; }));
  return found;
}

void print_generation(Engine& engine) {
  const std::string& phases = engine.generation().phases;
  std::printf("phases %s\n", phases.c_str());
  std::printf("nfc %ld of %zu\n", static_cast<long>(std::count(phases.begin(), phases.end(), 'F')), phases.size());
  for (const char* phase : {"INVARIANT", "TIMESTEP", "PREFIX", "FULL", "ESTIMATE"}) {
    const std::vector<double>& each = engine.milliseconds(phase);
    if (!each.empty()) std::printf("%s %.3f ms\n", phase, std::accumulate(each.begin(), each.end(), 0.0) / static_cast<double>(each.size()));
  }
}

int exit_code(const std::function<void()>& program) {
  try {
    program();
    return 0;
  } catch (const Json::exception& error) {
    std::fprintf(stderr, "rfc.json: %s; export again\n", error.what());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return 1;
}

}  // namespace rfc
