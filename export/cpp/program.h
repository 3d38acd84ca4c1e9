// A program of an artefact, whatever runs it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "artifact.h"

namespace rfc {

// The name of a tensor among all that a call's programs read and write.
inline std::string key(const std::string& kind, const std::string& name) { return kind + ":" + name; }

struct TensorSpec {
  std::string kind, name;
  at::ScalarType type;
  Shape shape;
};

class Program {
 public:
  explicit Program(const Json& spec);
  virtual ~Program() = default;

  // Tensors in the order of `inputs` to tensors in the order of `outputs`; `into[i]`, where it is defined, is the memory of output i.
  virtual std::vector<at::Tensor> run(std::vector<at::Tensor> given, const std::vector<at::Tensor>& into) = 0;

  std::vector<TensorSpec> inputs, outputs;
};

// Where a program lies, and what rfc.json says of it.
struct ProgramFile {
  const std::filesystem::path& folder;
  const Json& manifest;
  const std::string& phase;
  const Json& spec;

  std::filesystem::path path() const { return folder / spec.at("file").get<std::string>(); }
};

// Compiled by AOTInductor: state is written in place.
std::unique_ptr<Program> open_aoti(const ProgramFile& file, const Tensors& weights);

// For ONNX Runtime: new state is returned. Error where this library was built without it.
std::unique_ptr<Program> open_onnx(const ProgramFile& file, const Tensors& weights);

}  // namespace rfc
