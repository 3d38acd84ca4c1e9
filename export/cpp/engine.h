// An engine: programs of an artefact, the state that they share, and the decision of each step.
#pragma once

#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "artifact.h"
#include "bookkeeping.h"
#include "program.h"

namespace rfc {

// Thresholds and lists of full steps by name.
using Numbers = std::unordered_map<std::string, std::vector<float>>;

// Which step is computed in full: the rule and numbers that the manifest has for a call.
class Schedule {
 public:
  // Error for a rule that this library does not know.
  Schedule(const Json& method, const Json& decision);

  // Whether step number `step`, `k` steps after the last full one, is full; `total` is the accumulated error.
  bool full(float step, float k, float total) const;

  // k, N and n for the programs, in the rule's unit: steps since the last full one, between the two before, full steps so far; then the
  // weights of the step, where the rule has some.
  std::vector<float> clock(float step, const Counts& counts) const;

 private:
  float number(const std::string& name) const { return numbers_.at(name).at(0); }

  std::string rule_;
  Numbers numbers_;
};

// What a generation did, and where it stands.
struct Generation {
  std::string phases;  // a letter for each step: F for FULL, E for ESTIMATE
  Counts counts;
  double timestep = std::numeric_limits<double>::infinity();

  // Take the decision of the coming step and count it; `eps` is not a number where nothing was measured.
  bool decide(const Schedule& schedule, float eps);

  // Take over what a program that decides by itself (dispatch cond) wrote: where it stands, and a row [full, eps, total] for each step.
  void follow(const at::Tensor& progress, const at::Tensor& log);
};

class Engine {
 public:
  // Open an artefact's folder. Error where it is damaged or needs what this program does not have.
  explicit Engine(const std::filesystem::path& folder);

  // One step: tensors by the model's argument names, in the shapes of one of the calls that the engine was built for, which picks the
  // programs; returns the model's outputs. Every context ("cond", "uncond") has state of its own for each call.
  // A timestep that grew begins a new generation in its context. Arguments lie on one device; outputs come back to it.
  std::vector<at::Tensor> run(const Tensors& arguments, const std::string& context = "");

  // The next call of every context begins a new generation.
  void reset();

  const Json& manifest() const { return manifest_; }

  // That of the context that ran last.
  const Generation& generation() const { return lane_ == nullptr ? nothing_ : lane_->generation; }

  // Milliseconds of each run of a phase so far.
  const std::vector<double>& milliseconds(const std::string& phase) { return milliseconds_[phase]; }

 private:
  // The programs for one call.
  struct Set {
    Json spec;
    std::optional<Schedule> schedule;  // none where the program decides
    std::unordered_map<std::string, std::unique_ptr<Program>> programs;
    Tensors fixed;    // arguments whose values the programs were made for
    Tensors numbers;  // what a program decides by
  };
  // The state of one context and call.
  struct Lane {
    Tensors values;  // by kind and name, as programs ask for them
    Tensors spare;   // where a program that returns its state writes it next
    Generation generation;
    float eps = 0;
  };

  // Whether the decision of a step is part of its program (dispatch cond).
  bool decides_in_program() const { return manifest_.at("config").at("dispatch") == "cond"; }

  Lane allocate(const Set& set) const;
  static std::string refusal(const Set& set, const Tensors& arguments);
  size_t pick(const Tensors& arguments) const;
  std::vector<at::Tensor> run_host(Set& set, Lane& lane, const Tensors& arguments);
  std::vector<at::Tensor> run_cond(Set& set, Lane& lane);
  std::vector<at::Tensor> run_program(Set& set, Lane& lane, const std::string& phase);

  Json manifest_;
  at::Device device_;  // of the programs, their weights and the state
  std::vector<Set> sets_;
  std::map<std::pair<size_t, std::string>, Lane> lanes_;
  Lane* lane_ = nullptr;
  Generation nothing_;
  std::unordered_map<std::string, std::vector<double>> milliseconds_;
};

}  // namespace rfc
