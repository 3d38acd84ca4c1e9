// What the programs have in common: options, the report of a generation, errors in one line.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine.h"

namespace rfc {

// A folder, and values of options by name ("--seed").
class CommandLine {
 public:
  // Error for an option that has no default, and where no folder is given.
  CommandLine(int argc, char** argv, const std::string& usage, std::map<std::string, std::string> defaults);

  const std::string& folder() const { return folder_; }
  const std::string& text(const std::string& option) const { return values_.at(option); }
  int64_t integer(const std::string& option) const { return integers(option).at(0); }
  double number(const std::string& option) const;

  // Numbers between commas; none where the value is empty.
  std::vector<int64_t> integers(const std::string& option) const;

 private:
  std::string folder_;
  std::map<std::string, std::string> values_;
};

// Phases, number of full steps, and milliseconds of each kind of program.
void print_generation(Engine& engine);

// The exit code of a program; what it throws is printed in one line.
int exit_code(const std::function<void()>& program);

}  // namespace rfc
