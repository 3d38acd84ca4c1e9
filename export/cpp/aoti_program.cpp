#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include "program.h"

namespace rfc {

namespace {

class AotiProgram : public Program {
 public:
  AotiProgram(const ProgramFile& file, const Tensors& weights)
      : Program(file.spec), loader_(file.path().string(), file.spec.at("entry").get<std::string>()) {
    const std::string where = file.path().string() + ": " + file.phase;
    for (const std::string& name : loader_.get_constant_fqns()) {
      const Json& names = file.spec.at("weights");
      auto found = names.contains(name) ? weights.find(names.at(name).get<std::string>()) : weights.end();
      if (found == weights.end()) throw Error(where + " asks for the weight " + name + ", which is not there; export again");
      const Json& stated = file.manifest.at("weights").at(found->first);
      if (found->second.scalar_type() != dtype(stated.at("dtype")) || found->second.sizes().vec() != stated.at("shape").get<Shape>())
        throw Error(where + ": the weight " + name + " is of another type or shape than rfc.json says; export again");
      weights_[name] = found->second;
    }
    loader_.load_constants(weights_, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
  }

  std::vector<at::Tensor> run(std::vector<at::Tensor> given, const std::vector<at::Tensor>&) override {
    return loader_.boxed_run(std::move(given));
  }

 private:
  torch::inductor::AOTIModelPackageLoader loader_;
  Tensors weights_;  // kept alive: the program holds pointers to them
};

}  // namespace

std::unique_ptr<Program> open_aoti(const ProgramFile& file, const Tensors& weights) { return std::make_unique<AotiProgram>(file, weights); }

}  // namespace rfc
