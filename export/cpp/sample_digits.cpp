// Draw digits with an exported engine: classifier-free guidance, DDIM, no Python.
//
//   sample_digits ENGINE [--classes 3,7] [--seed 0] [--noise FILE] [--steps 50] [--out digits.pgm] [--floats FILE]
//
// --noise holds float32 numbers (N, C, H, W) to start from, --floats takes the samples as such. rfc.json's `sampler` says the rest.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cumprod.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <sstream>

#include "engine.h"

namespace {

using rfc::Error;
using rfc::Json;

struct Options {
  std::string engine, out = "digits.pgm", noise, floats;
  std::vector<int64_t> classes = {3};
  uint64_t seed = 0;
  int steps = 50;
};

Options parse(int argc, char** argv) {
  Options found;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name.rfind("--", 0) != 0) {
      found.engine = name;
      continue;
    }
    if (++i == argc) throw Error(name + ": expected a value");
    const std::string value = argv[i];
    try {
      if (name == "--out") found.out = value;
      else if (name == "--noise") found.noise = value;
      else if (name == "--floats") found.floats = value;
      else if (name == "--seed") found.seed = std::stoull(value);
      else if (name == "--steps") found.steps = std::stoi(value);
      else if (name == "--classes") {
        found.classes.clear();
        std::istringstream list(value);
        for (std::string one; std::getline(list, one, ',');) found.classes.push_back(std::stoll(one));
      } else throw Error(name + ": no such option");
    } catch (const std::logic_error&) {
      throw Error(name + ": expected a number, got " + value);
    }
  }
  if (found.engine.empty()) throw Error("usage: sample_digits ENGINE [--classes 3,7] [--seed 0] [--noise FILE] [--steps 50] [--out FILE] [--floats FILE]");
  return found;
}

// DDIM without noise of its own: x0 = (x - sqrt(1 - a) eps) / sqrt(a); x' = sqrt(a') x0 + sqrt(1 - a') eps.
class Ddim {
 public:
  Ddim(const Json& config, int steps) {
    auto is = [&](const char* name, const char* wanted) {
      if (config.at(name) != wanted) throw Error("sampler.scheduler: " + std::string(name) + " is " + config.at(name).dump() + ", this program knows " + wanted);
    };
    is("_class_name", "DDIMScheduler");
    is("beta_schedule", "linear");
    is("timestep_spacing", "leading");
    is("prediction_type", "epsilon");
    for (const char* name : {"clip_sample", "thresholding", "rescale_betas_zero_snr"})
      if (config.at(name).get<bool>()) throw Error("sampler.scheduler: " + std::string(name) + " is not known to this program");
    const int64_t trained = config.at("num_train_timesteps").get<int64_t>();
    if (steps < 1 || steps > trained) throw Error("--steps: expected 1 to " + std::to_string(trained));
    step_ = trained / steps;
    const at::Tensor betas = at::linspace(config.at("beta_start").get<double>(), config.at("beta_end").get<double>(), trained, at::kFloat);
    alphas_ = at::cumprod(1.0 - betas, 0);
    last_ = config.at("set_alpha_to_one").get<bool>() ? at::ones({}) : alphas_[0];
    for (int64_t i = steps; i-- > 0;) timesteps_.push_back(i * step_ + config.at("steps_offset").get<int64_t>());
  }

  const std::vector<int64_t>& timesteps() const { return timesteps_; }

  at::Tensor step(const at::Tensor& eps, int64_t t, const at::Tensor& x) const {
    const at::Tensor a = alphas_[t], before = t >= step_ ? alphas_[t - step_] : last_;
    const at::Tensor x0 = (x - (1 - a).sqrt() * eps) / a.sqrt();
    return before.sqrt() * x0 + (1 - before).sqrt() * eps;
  }

 private:
  int64_t step_ = 0;
  at::Tensor alphas_, last_;
  std::vector<int64_t> timesteps_;
};

at::Tensor starting_noise(const Options& options, const std::vector<int64_t>& shape) {
  at::Tensor noise = at::empty(shape);
  if (!options.noise.empty()) {
    std::ifstream file(options.noise, std::ios::binary);
    file.read(static_cast<char*>(noise.data_ptr()), static_cast<std::streamsize>(noise.nbytes()));
    if (!file) throw Error(options.noise + ": expected " + std::to_string(noise.nbytes()) + " bytes of float32 numbers");
    return noise;
  }
  const std::vector<int64_t> one(shape.begin() + 1, shape.end());
  for (int64_t i = 0; i < shape[0]; ++i) noise[i].copy_(at::randn(one, at::detail::createCPUGenerator(options.seed + i), at::kFloat));
  return noise;
}

// Pictures beside each other, as a binary portable graymap; pixels are in [-1, 1].
void write_picture(const at::Tensor& samples, const std::string& path) {
  const at::Tensor row = at::cat(samples.select(1, 0).unbind(0), 1);
  const at::Tensor pixels = ((row.clamp(-1, 1) + 1) * 127.5).round().to(at::kByte).contiguous();
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << pixels.size(1) << " " << pixels.size(0) << "\n255\n";
  file.write(static_cast<const char*>(pixels.data_ptr()), pixels.numel());
  if (!file) throw Error(path + ": cannot be written");
}

double mean(const std::vector<double>& values) { return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / values.size(); }

void sample(const Options& options) {
  c10::InferenceMode guard;
  rfc::Engine engine(options.engine);
  const Json& sampler = engine.manifest().at("sampler");
  if (sampler.is_null() || sampler.at("kind") != "digits") throw Error(options.engine + ": exported without sampler={'kind': 'digits', ...}");
  const int64_t count = static_cast<int64_t>(options.classes.size());
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
  const Ddim ddim(sampler.at("scheduler"), options.steps);
  const double cfg = sampler.at("cfg");
  const at::Tensor labels = at::tensor(options.classes, at::kLong);
  const at::Tensor both = at::cat({labels, at::full_like(labels, sampler.at("null_class").get<int64_t>())});
  shape[0] = count;
  at::Tensor x = starting_noise(options, shape);
  for (int64_t t : ddim.timesteps()) {
    const at::Tensor eps = engine.run({{"hidden_states", at::cat({x, x})}, {"timestep", at::full({2 * count}, t, at::kLong)}, {"class_labels", both}});
    const std::vector<at::Tensor> halves = eps.chunk(2);
    x = ddim.step(halves[1] + cfg * (halves[0] - halves[1]), t, x);
  }
  write_picture(x, options.out);
  if (!options.floats.empty()) {
    std::ofstream file(options.floats, std::ios::binary);
    file.write(static_cast<const char*>(x.contiguous().data_ptr()), static_cast<std::streamsize>(x.nbytes()));
    if (!file) throw Error(options.floats + ": cannot be written");
  }
  const std::string& phases = engine.generation().phases;
  std::printf("phases %s\n", phases.c_str());
  std::printf("nfc %ld of %zu\n", static_cast<long>(std::count(phases.begin(), phases.end(), 'F')), phases.size());
  for (const char* phase : {"INVARIANT", "TIMESTEP", "PREFIX", "FULL", "ESTIMATE"})
    if (!engine.milliseconds(phase).empty()) std::printf("%s %.3f ms\n", phase, mean(engine.milliseconds(phase)));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    sample(parse(argc, argv));
  } catch (const Json::exception& error) {
    std::fprintf(stderr, "rfc.json: %s; export again\n", error.what());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
