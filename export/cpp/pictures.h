// Pictures and numbers in files.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace rfc {

// A picture (C, H, W) in [-1, 1], grey or red, green and blue, as PNG; Error where it cannot be written.
void write_png(const at::Tensor& picture, const std::string& path);

// The float32 numbers of a tensor, nothing else.
void write_floats(const at::Tensor& values, const std::string& path);

}  // namespace rfc
