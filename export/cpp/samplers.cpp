#include "samplers.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cumprod.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <cmath>

namespace rfc {

namespace {

void expect(const Json& config, const std::string& name, const Json& known) {
  if (config.contains(name) && config.at(name) != known)
    throw Error("scheduler." + name + ": " + config.at(name).dump() + "; this program knows " + known.dump());
}

void expect_steps(int steps, int64_t most) {
  if (steps < 1 || steps > most) throw Error("--steps: expected 1 to " + std::to_string(most));
}

}  // namespace

Ddim::Ddim(const Json& config, int steps) {
  expect(config, "_class_name", "DDIMScheduler");
  expect(config, "beta_schedule", "linear");
  expect(config, "timestep_spacing", "leading");
  expect(config, "prediction_type", "epsilon");
  for (const char* name : {"clip_sample", "thresholding", "rescale_betas_zero_snr"}) expect(config, name, false);
  const int64_t trained = config.at("num_train_timesteps").get<int64_t>();
  expect_steps(steps, trained);
  stride_ = trained / steps;
  const at::Tensor betas = at::linspace(config.at("beta_start").get<double>(), config.at("beta_end").get<double>(), trained, at::kFloat);
  alphas_ = at::cumprod(1.0 - betas, 0);
  last_ = config.at("set_alpha_to_one").get<bool>() ? at::ones({}) : alphas_[0];
  for (int64_t i = steps; i-- > 0;) timesteps_.push_back(i * stride_ + config.at("steps_offset").get<int64_t>());
}

at::Tensor Ddim::step(const at::Tensor& eps, int64_t t, const at::Tensor& x) const {
  const at::Tensor a = alphas_[t], before = t >= stride_ ? alphas_[t - stride_] : last_;
  const at::Tensor x0 = (x - (1 - a).sqrt() * eps) / a.sqrt();
  return before.sqrt() * x0 + (1 - before).sqrt() * eps;
}

FlowEuler::FlowEuler(const Json& config, int steps, int64_t tokens) {
  expect(config, "_class_name", "FlowMatchEulerDiscreteScheduler");
  for (const char* name : {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling"})
    expect(config, name, false);
  expect(config, "shift_terminal", nullptr);
  const double trained = config.at("num_train_timesteps");
  expect_steps(steps, static_cast<int64_t>(trained));
  const bool by_tokens = config.value("use_dynamic_shifting", false);
  double factor = config.value("shift", 1.0);
  if (by_tokens) {  // mu, linear in the number of tokens
    expect(config, "time_shift_type", "exponential");
    const double base = config.at("base_shift"), first = config.at("base_image_seq_len");
    const double slope = (config.at("max_shift").get<double>() - base) / (config.at("max_image_seq_len").get<double>() - first);
    factor = std::exp(base + slope * (static_cast<double>(tokens) - first));
  }
  for (int i = 0; i < steps; ++i) {
    const double t = 1 + (1.0 / steps - 1) * i / std::max(steps - 1, 1);
    sigmas_.push_back(static_cast<float>(factor * t / (1 + (factor - 1) * t)));
    timesteps_.push_back(sigmas_.back() * static_cast<float>(trained));
  }
  sigmas_.push_back(0);
}

at::Tensor FlowEuler::step(const at::Tensor& v, size_t index, const at::Tensor& x) const {
  return x + (sigmas_.at(index + 1) - sigmas_.at(index)) * v;
}

at::Tensor seeded_noise(const Shape& shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::kFloat);
}

}  // namespace rfc
