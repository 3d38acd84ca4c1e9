// Draw digits with an exported engine: classifier-free guidance, DDIM, no Python. rfc.json's `sampler` says the rest.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <fstream>

#include "command_line.h"
#include "engine.h"
#include "pictures.h"
#include "samplers.h"

namespace {

using rfc::Error;
using rfc::Json;

// --noise holds float32 numbers (N, C, H, W) to start from, --floats takes the samples as such.
constexpr const char* kUsage = "sample_digits ENGINE [--classes 3,7] [--seed 0] [--noise FILE] [--steps 50] [--out digits.png] [--floats FILE]";

at::Tensor starting_noise(const rfc::CommandLine& options, const rfc::Shape& shape) {
  const std::string& path = options.text("--noise");
  if (!path.empty()) {
    at::Tensor noise = at::empty(shape);
    std::ifstream file(path, std::ios::binary);
    file.read(static_cast<char*>(noise.data_ptr()), static_cast<std::streamsize>(noise.nbytes()));
    if (!file) throw Error(path + ": expected " + std::to_string(noise.nbytes()) + " bytes of float32 numbers");
    return noise;
  }
  const rfc::Shape one(shape.begin() + 1, shape.end());
  std::vector<at::Tensor> samples;
  for (int64_t i = 0; i < shape[0]; ++i) samples.push_back(rfc::seeded_noise(one, options.integer("--seed") + i));
  return at::stack(samples);
}

void sample(const rfc::CommandLine& options) {
  c10::InferenceMode guard;
  const std::vector<int64_t> classes = options.integers("--classes");
  const int64_t count = static_cast<int64_t>(classes.size()), steps = options.integer("--steps");
  rfc::Engine engine(options.folder());
  const Json& sampler = engine.manifest().at("sampler");
  if (sampler.is_null() || sampler.at("kind") != "digits") throw Error(options.folder() + ": exported without sampler={'kind': 'digits', ...}");
  rfc::Shape shape;
  std::string counts;
  for (const Json& set : engine.manifest().at("sets"))
    for (const Json& leaf : set.at("call").at("leaves")) {
      if (leaf.at("argument") != "hidden_states") continue;
      const rfc::Shape own = leaf.at("shape").get<rfc::Shape>();
      counts += (counts.empty() ? "" : " or ") + std::to_string(own.empty() ? 0 : own[0] / 2);
      if (own.size() == 4 && own[0] == 2 * count) shape = own;
    }
  if (shape.empty()) throw Error("--classes: this engine draws " + counts + " at once");
  const rfc::Ddim ddim(sampler.at("scheduler"), static_cast<int>(steps));
  const double cfg = sampler.at("cfg");
  const at::Tensor labels = at::tensor(classes, at::kLong);
  const at::Tensor both = at::cat({labels, at::full_like(labels, sampler.at("null_class").get<int64_t>())});
  shape[0] = count;
  at::Tensor x = starting_noise(options, shape);
  for (int64_t t : ddim.timesteps()) {
    const rfc::Tensors call = {{"hidden_states", at::cat({x, x})}, {"timestep", at::full({2 * count}, t, at::kLong)}, {"class_labels", both}};
    const std::vector<at::Tensor> halves = engine.run(call).at(0).chunk(2);
    x = ddim.step(halves[1] + cfg * (halves[0] - halves[1]), t, x);
  }
  rfc::write_png(at::cat(x.unbind(0), /*dim=*/2), options.text("--out"));
  if (!options.text("--floats").empty()) rfc::write_floats(x, options.text("--floats"));
  rfc::print_generation(engine);
}

}  // namespace

int main(int argc, char** argv) {
  return rfc::exit_code([&] {
    sample({argc, argv, kUsage,
            {{"--classes", "3"}, {"--seed", "0"}, {"--noise", ""}, {"--steps", "50"}, {"--out", "digits.png"}, {"--floats", ""}}});
  });
}
