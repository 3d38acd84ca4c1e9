#include "pictures.h"

#include <ATen/TensorOperators.h>
#include <png.h>

#include <cstring>
#include <fstream>

#include "artifact.h"

namespace rfc {

void write_png(const at::Tensor& picture, const std::string& path) {
  const at::Tensor pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().to(at::kByte).permute({1, 2, 0}).contiguous();
  png_image image;
  std::memset(&image, 0, sizeof image);
  image.version = PNG_IMAGE_VERSION;
  image.height = static_cast<png_uint_32>(pixels.size(0));
  image.width = static_cast<png_uint_32>(pixels.size(1));
  image.format = pixels.size(2) == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
  if (!png_image_write_to_file(&image, path.c_str(), /*convert_to_8bit=*/0, pixels.data_ptr(), /*row_stride=*/0, /*colormap=*/nullptr))
    throw Error(path + ": cannot be written: " + image.message);
}

void write_floats(const at::Tensor& values, const std::string& path) {
  const at::Tensor numbers = values.to(at::kFloat).contiguous();
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(numbers.data_ptr()), static_cast<std::streamsize>(numbers.nbytes()));
  if (!file) throw Error(path + ": cannot be written");
}

}  // namespace rfc
