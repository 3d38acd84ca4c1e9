// An artefact's folder: rfc.json and weights.safetensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace rfc {

using Json = nlohmann::json;
using Shape = std::vector<int64_t>;

// What is damaged, missing or not supported, in one sentence.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

using Tensors = std::unordered_map<std::string, at::Tensor>;

// The file as JSON; Error, with the file and the place, where it is none.
Json read_json(const std::filesystem::path& file);

// Read rfc.json and check what a program of this kind can check: schema, back end, device, torch's version, lengths of files.
// Checksums are what `rfc-fx verify` is for.
Json read_manifest(const std::filesystem::path& folder);

// The weights on the CPU, all in one block of memory that lives as long as any of them.
Tensors read_weights(const std::filesystem::path& file);

at::ScalarType dtype(const std::string& name);

}  // namespace rfc
