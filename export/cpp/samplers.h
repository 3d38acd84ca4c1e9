// What a scheduler of diffusers does with the settings in scheduler_config.json, for a plain run from noise to picture.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "artifact.h"

namespace rfc {

// DDIM without noise of its own: x0 = (x - sqrt(1 - a) eps) / sqrt(a); x' = sqrt(a') x0 + sqrt(1 - a') eps.
class Ddim {
 public:
  // Error for a setting that is not known here, and for no or too many steps.
  Ddim(const Json& config, int steps);

  const std::vector<int64_t>& timesteps() const { return timesteps_; }
  at::Tensor step(const at::Tensor& eps, int64_t t, const at::Tensor& x) const;

 private:
  int64_t stride_ = 0;
  at::Tensor alphas_, last_;
  std::vector<int64_t> timesteps_;
};

// Euler's method for flow matching: x' = x + (sigma' - sigma) v, sigmas from 1 to 1 / steps and shifted.
class FlowEuler {
 public:
  // `tokens` of the picture, by which FLUX shifts; Error as of Ddim.
  FlowEuler(const Json& config, int steps, int64_t tokens);

  const std::vector<float>& timesteps() const { return timesteps_; }
  at::Tensor step(const at::Tensor& v, size_t index, const at::Tensor& x) const;

 private:
  std::vector<float> sigmas_, timesteps_;
};

// Normally distributed numbers: those of torch's generator with this seed.
at::Tensor seeded_noise(const Shape& shape, uint64_t seed);

}  // namespace rfc
