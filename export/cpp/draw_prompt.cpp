// Draw a picture from a prompt's token ids with a whole FLUX pipeline (`rfc-fx export --whole`): text encoders, cached transformer, VAE decoder.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "command_line.h"
#include "engine.h"
#include "pictures.h"
#include "samplers.h"

namespace {

using rfc::Error;
using rfc::Json;

// --ids: of `tokenizer`, --ids-2: of `tokenizer_2`, both with their special tokens, and padded here; --cfg: of true guidance, by a second call.
constexpr const char* kUsage =
    "draw_prompt FOLDER --ids 1,2 --ids-2 3,4 [--negative-ids 1 --negative-ids-2 3] [--cfg 3] [--guidance 3.5] [--seed 0] [--steps 28] "
    "[--width W --height H] [--out picture.png] [--floats FILE]";

const Json* leaf(const rfc::Engine& engine, const std::string& argument) {
  for (const Json& one : engine.manifest().at("sets").at(0).at("call").at("leaves"))
    if (one.at("argument") == argument && !one.at("placeholder").is_null()) return &one;
  return nullptr;
}

rfc::Shape shape_of(const rfc::Engine& engine, const std::string& argument) {
  const Json* found = leaf(engine, argument);
  if (found == nullptr)
    throw Error("this program draws with pipelines of FLUX; the engine of " + engine.manifest().at("model").at("model_class").get<std::string>() +
                " takes no " + argument);
  return found->at("shape");
}

// A text encoder with its tokenizer's padding.
class TextEncoder {
 public:
  TextEncoder(const std::filesystem::path& folder, const std::string& number)
      : engine_(folder / ("text_encoder" + number)), length_(shape_of(engine_, "input_ids").at(1)) {
    const std::filesystem::path tokenizer = folder / ("tokenizer" + number);
    const Json pad = rfc::read_json(tokenizer / "tokenizer_config.json").at("pad_token");
    const Json& name = pad.is_object() ? pad.at("content") : pad;
    const Json tokens = rfc::read_json(tokenizer / "tokenizer.json").at("added_tokens");
    for (const Json& token : tokens)
      if (token.at("content") == name) padding_ = token.at("id");
    if (padding_ < 0) throw Error((tokenizer / "tokenizer.json").string() + ": pad_token " + name.dump() + " is no added token; copy it again");
  }

  // The output of this name for tokens; Error where they are none or too many.
  at::Tensor encode(const rfc::CommandLine& options, const std::string& option, const std::string& output) {
    std::vector<int64_t> ids = options.integers(option);
    if (ids.empty() || static_cast<int64_t>(ids.size()) > length_) throw Error(option + ": expected 1 to " + std::to_string(length_) + " token ids");
    ids.resize(length_, padding_);
    engine_.reset();
    const std::vector<at::Tensor> outputs = engine_.run({{"input_ids", at::tensor(ids, at::kLong).unsqueeze(0)}});
    const Json tree = Json::parse(engine_.manifest().at("sets").at(0).at("call").at("outputs").get<std::string>());
    const std::vector<std::string> names = Json::parse(tree.at(1).at("context").get<std::string>());
    const size_t index = std::find(names.begin(), names.end(), output) - names.begin();
    return outputs.at(index);
  }

 private:
  rfc::Engine engine_;
  int64_t length_, padding_ = -1;
};

// (1, C, H, W) to (1, tokens, 4 C): a token is 2 x 2 latents.
at::Tensor packed(const at::Tensor& x) {
  const int64_t channels = x.size(1), rows = x.size(2) / 2, columns = x.size(3) / 2;
  return x.view({1, channels, rows, 2, columns, 2}).permute({0, 2, 4, 1, 3, 5}).reshape({1, rows * columns, channels * 4});
}

at::Tensor unpacked(const at::Tensor& x, int64_t rows, int64_t columns) {
  const int64_t channels = x.size(2) / 4;
  return x.view({1, rows, columns, channels, 2, 2}).permute({0, 3, 1, 4, 2, 5}).reshape({1, channels, rows * 2, columns * 2});
}

// (row, column) of each token behind a 0.
at::Tensor positions(int64_t rows, int64_t columns) {
  const at::Tensor token = at::arange(rows * columns, at::kFloat), row = (token / columns).floor();
  return at::stack({at::zeros({rows * columns}), row, token - row * columns}, 1);
}

void draw(const rfc::CommandLine& options) {
  c10::InferenceMode guard;
  const std::filesystem::path folder = options.folder();
  const Json index = rfc::read_json(folder / "model_index.json");
  for (const char* part : {"text_encoder", "text_encoder_2", "transformer", "vae"})
    if (index.value(part, Json()) != Json({"rfc_export", "PipelineEngine"}))
      throw Error((folder / "model_index.json").string() + ": " + part + " is no engine; export a pipeline of FLUX with rfc-fx export --whole");
  TextEncoder clip(folder, ""), t5(folder, "_2");
  rfc::Engine transformer(folder / "transformer"), vae(folder / "vae");

  const int64_t channels = shape_of(transformer, "hidden_states").at(2), tokens = shape_of(transformer, "hidden_states").at(1);
  const Json& decoder = vae.manifest().at("model").at("config");
  const int64_t token_side = int64_t{2} << (decoder.at("block_out_channels").size() - 1);  // pixels
  const int64_t side = static_cast<int64_t>(std::sqrt(static_cast<double>(tokens)));
  auto extent = [&](const char* option) {
    if (options.text(option).empty()) return side;
    if (options.integer(option) % token_side) throw Error(std::string(option) + ": expected a multiple of " + std::to_string(token_side));
    return options.integer(option) / token_side;
  };
  const int64_t rows = extent("--height"), columns = extent("--width");

  const int steps = static_cast<int>(options.integer("--steps"));
  const rfc::FlowEuler euler(rfc::read_json(folder / "scheduler" / "scheduler_config.json"), steps, rows * columns);
  auto text = [&](const std::string& prefix) {
    const at::Tensor sequence = t5.encode(options, prefix + "ids-2", "last_hidden_state");
    rfc::Tensors call = {{"pooled_projections", clip.encode(options, prefix + "ids", "pooler_output")},
                         {"encoder_hidden_states", sequence},
                         {"txt_ids", at::zeros({sequence.size(1), 3})},
                         {"img_ids", positions(rows, columns)}};
    if (leaf(transformer, "guidance") != nullptr) call["guidance"] = at::full({1}, options.number("--guidance"), at::kFloat);
    return call;
  };
  rfc::Tensors cond = text("--"), uncond;
  const bool guided = !options.text("--negative-ids").empty() || !options.text("--negative-ids-2").empty();
  if (guided) uncond = text("--negative-");
  const double cfg = options.number("--cfg");
  at::Tensor x = packed(rfc::seeded_noise({1, channels / 4, rows * 2, columns * 2}, options.integer("--seed")));
  for (int step = 0; step < steps; ++step) {
    for (rfc::Tensors* call : {&cond, &uncond}) {
      (*call)["hidden_states"] = x;
      (*call)["timestep"] = at::full({1}, euler.timesteps().at(step) / 1000, at::kFloat);
    }
    at::Tensor v = transformer.run(cond, "cond").at(0);
    if (guided) {
      const at::Tensor without = transformer.run(uncond, "uncond").at(0);
      v = without + cfg * (v - without);
    }
    x = euler.step(v, step, x);
  }
  const double shift = decoder.at("shift_factor").is_null() ? 0 : decoder.at("shift_factor").get<double>();
  const at::Tensor picture = vae.run({{"z", unpacked(x, rows, columns) / decoder.at("scaling_factor").get<double>() + shift}}).at(0)[0];
  rfc::write_png(picture, options.text("--out"));
  if (!options.text("--floats").empty()) rfc::write_floats(picture, options.text("--floats"));
  rfc::print_generation(transformer);
}

}  // namespace

int main(int argc, char** argv) {
  return rfc::exit_code([&] {
    draw({argc, argv, kUsage,
          {{"--ids", ""}, {"--ids-2", ""}, {"--negative-ids", ""}, {"--negative-ids-2", ""}, {"--cfg", "3"}, {"--guidance", "3.5"},
           {"--seed", "0"}, {"--steps", "28"}, {"--width", ""}, {"--height", ""}, {"--out", "picture.png"}, {"--floats", ""}}});
  });
}
