#include "artifact.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/version.h>

#include <cstring>
#include <fstream>
#include <sstream>

namespace rfc {

namespace fs = std::filesystem;

namespace {

constexpr int kSchema = 3;

const std::unordered_map<std::string, at::ScalarType> kTypes = {
    {"float64", at::kDouble},  {"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}, {"float8_e4m3fn", at::kFloat8_e4m3fn},
    {"int64", at::kLong},      {"int32", at::kInt},     {"int16", at::kShort},  {"int8", at::kChar},         {"uint8", at::kByte},
    {"bool", at::kBool},       {"F64", at::kDouble},    {"F32", at::kFloat},    {"F16", at::kHalf},          {"BF16", at::kBFloat16},
    {"F8_E4M3", at::kFloat8_e4m3fn}, {"I64", at::kLong}, {"I32", at::kInt},     {"I16", at::kShort},         {"I8", at::kChar},
    {"U8", at::kByte},         {"BOOL", at::kBool},
};

std::string contents(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) throw Error(file.string() + ": cannot be read; pass the folder of an artefact");
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

std::string minor(const std::string& version) { return version.substr(0, version.find('.', version.find('.') + 1)); }

// The text as JSON; Error, with the file and the place, where it is none.
Json parsed(const std::string& text, const fs::path& file) {
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    throw Error(file.string() + ": no JSON: " + error.what() + "; copy it again");
  }
}

}  // namespace

at::ScalarType dtype(const std::string& name) {
  auto found = kTypes.find(name);
  if (found == kTypes.end()) throw Error("no known type of numbers: " + name);
  return found->second;
}

Json read_json(const fs::path& file) { return parsed(contents(file), file); }

Json read_manifest(const fs::path& folder) {
  Json manifest = read_json(folder / "rfc.json");
  if (manifest.at("schema_version") != kSchema)
    throw Error((folder / "rfc.json").string() + ": of another schema version than " + std::to_string(kSchema) + "; export again");
  const std::string backend = manifest.at("backend"), device = manifest.at("target").at("device");
  if ((backend != "aoti" && backend != "onnx") || (device != "cpu" && backend != "aoti"))
    throw Error(folder.string() + ": for " + backend + ", on " + device + "; export with backend='aoti', or 'onnx' on a CPU");
  if (device != "cpu" && (device.rfind("cuda", 0) != 0 || !at::hasCUDA()))
    throw Error(folder.string() + ": for " + device + ", and this LibTorch has none here; export on a CPU, or build with a LibTorch for CUDA");
  const std::string built = manifest.at("built_with").at("torch");
  if (backend == "aoti" && minor(built) != minor(TORCH_VERSION))
    throw Error(folder.string() + ": built with torch " + built + ", this program with " + TORCH_VERSION + "; export again, or build it with that one");
  for (const auto& [name, file] : manifest.at("files").items()) {
    std::error_code error;
    if (name.find('/') != std::string::npos || fs::file_size(folder / name, error) != file.at("bytes").get<uintmax_t>() || error)
      throw Error((folder / name).string() + ": missing, or of another length than rfc.json says; copy the artefact again");
  }
  return manifest;
}

Tensors read_weights(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  uint64_t length = 0;
  stream.read(reinterpret_cast<char*>(&length), sizeof length);
  std::error_code error;
  const uintmax_t bytes = fs::file_size(file, error);
  if (!stream || error || length > bytes - sizeof length) throw Error(file.string() + ": no safetensors file, or cut off; copy it again");
  std::string header(length, '\0');
  stream.read(header.data(), static_cast<std::streamsize>(length));
  at::Tensor memory = at::empty({static_cast<int64_t>(bytes - sizeof length - length)}, at::kByte);
  stream.read(static_cast<char*>(memory.data_ptr()), memory.numel());
  if (!stream) throw Error(file.string() + ": cut off; copy it again");
  const Json specs = parsed(header, file);
  Tensors weights;
  for (const auto& [name, spec] : specs.items()) {
    if (name == "__metadata__") continue;
    const Shape range = spec.at("data_offsets"), shape = spec.at("shape");
    const at::ScalarType type = dtype(spec.at("dtype"));
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    if (range.size() != 2 || range[0] < 0 || range[1] > memory.numel() || range[1] - range[0] != count * static_cast<int64_t>(at::elementSize(type)))
      throw Error(file.string() + ": " + name + " does not lie in the file; copy it again");
    void* begin = static_cast<char*>(memory.data_ptr()) + range[0];
    weights[name] = at::from_blob(begin, shape, [memory](void*) {}, at::TensorOptions().dtype(type));
  }
  return weights;
}

}  // namespace rfc
