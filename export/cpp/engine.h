// An engine: programs of an artefact, the state that they share, and the decision of each step.
#pragma once

#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "artifact.h"
#include "bookkeeping.h"

namespace torch::inductor {
class AOTIModelPackageLoader;
}

namespace rfc {

// Which step is computed in full: the rule and thresholds of the manifest.
class Schedule {
 public:
  explicit Schedule(const Json& manifest);

  // Whether step number `step`, `k` steps after the last full one, is full; `total` is the accumulated error.
  bool full(float step, float k, float total) const;

 private:
  float number(const std::string& name) const { return numbers_.at(name).at(0); }

  std::string rule_;
  std::unordered_map<std::string, std::vector<float>> numbers_;
};

// What a generation did, and where it stands.
struct Generation {
  std::string phases;  // a letter for each step: F for FULL, E for ESTIMATE
  Counts counts;
  double timestep = std::numeric_limits<double>::infinity();

  // Take the decision of the coming step and count it; `eps` is not a number where nothing was measured.
  bool decide(const Schedule& schedule, float eps);
};

class Engine {
 public:
  // Open an artefact's folder: host dispatch, one state set. Error where it is damaged or needs what this program does not have.
  explicit Engine(const std::filesystem::path& folder);

  // One step: tensors by the model's argument names, in the shapes that the engine was built for; returns the model's first output.
  // A timestep that grew begins a new generation.
  at::Tensor run(const Tensors& arguments);

  // The next call begins a new generation.
  void reset() { generation_ = {}; }

  const Json& manifest() const { return manifest_; }
  const Generation& generation() const { return generation_; }

  // Milliseconds of each run of a phase so far.
  const std::vector<double>& milliseconds(const std::string& phase) { return milliseconds_[phase]; }

 private:
  struct Spec {
    std::string kind, name;
    at::ScalarType type;
    std::vector<int64_t> shape;
  };
  struct Program {
    std::vector<Spec> inputs, outputs;
    std::shared_ptr<torch::inductor::AOTIModelPackageLoader> loader;
    Tensors weights;  // kept alive: the program holds pointers to them
  };

  void open(const std::string& phase, const Json& spec, const std::filesystem::path& folder, const Tensors& weights);
  void allocate();
  void take(const Tensors& arguments);
  at::Tensor run_program(const std::string& phase);

  Json manifest_;
  Schedule schedule_;
  Generation generation_;
  std::unordered_map<std::string, Program> programs_;
  Tensors values_;  // by kind and name, as programs ask for them
  float eps_ = 0;
  std::unordered_map<std::string, std::vector<double>> milliseconds_;
};

}  // namespace rfc
