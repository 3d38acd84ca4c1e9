#include "engine.h"

#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <chrono>
#include <cmath>

namespace rfc {

namespace {

std::string key(const std::string& kind, const std::string& name) { return kind + ":" + name; }

}  // namespace

Schedule::Schedule(const Json& manifest) : rule_(manifest.at("decision").at("rule").get<std::string>()) {
  for (const auto& [name, given] : manifest.at("decision").at("numbers").items())
    for (const Json& one : given)
      numbers_[name].push_back(one.is_string() ? std::numeric_limits<float>::infinity() : one.get<float>());
  if (rule_ != "RCS" && rule_ != "Every") throw Error("decision.rule: " + rule_ + "; this program knows RCS and Every");
  if (rule_ == "RCS" && manifest.at("method").at("schedule").at("lagged").get<bool>())
    throw Error("method.schedule: this program decides with the step's own error; export with lagged=False");
}

bool Schedule::full(float step, float k, float total) const {
  if (rule_ == "Every") return step < number("warmup") || k >= number("interval");
  return step < number("warmup") || !(total <= number("tau")) || k > number("max_skip");
}

bool Generation::decide(const Schedule& schedule, float eps) {
  counts = observe(counts, eps);
  const bool full = schedule.full(static_cast<float>(phases.size()), counts.since + 1, counts.total);
  phases += full ? 'F' : 'E';
  counts = advance(counts, full);
  return full;
}

Engine::Engine(const std::filesystem::path& folder) : manifest_(read_manifest(folder)), schedule_(manifest_) {
  const Tensors weights = read_weights(folder / "weights.safetensors");
  for (const auto& [phase, spec] : manifest_.at("programs").items()) open(phase, spec, folder, weights);
  allocate();
}

void Engine::open(const std::string& phase, const Json& spec, const std::filesystem::path& folder, const Tensors& weights) {
  auto specs = [](const Json& listed) {
    std::vector<Spec> made;
    for (const Json& one : listed)
      made.push_back({one.at("kind"), one.at("name"), dtype(one.at("dtype")), one.at("shape")});
    return made;
  };
  Program& program = programs_[phase];
  program.inputs = specs(spec.at("inputs"));
  program.outputs = specs(spec.at("outputs"));
  const std::string file = (folder / spec.at("file").get<std::string>()).string();
  program.loader = std::make_shared<torch::inductor::AOTIModelPackageLoader>(file, spec.at("entry").get<std::string>());
  for (const std::string& name : program.loader->get_constant_fqns()) {
    const Json& names = spec.at("weights");
    auto found = names.contains(name) ? weights.find(names.at(name).get<std::string>()) : weights.end();
    if (found == weights.end()) throw Error(file + ": " + phase + " asks for the weight " + name + ", which is not there; export again");
    const Json& stated = manifest_.at("weights").at(found->first);
    if (found->second.scalar_type() != dtype(stated.at("dtype")) || found->second.sizes().vec() != stated.at("shape").get<Shape>())
      throw Error(file + ": " + phase + ": the weight " + name + " is of another type or shape than rfc.json says; export again");
    program.weights[name] = found->second;
  }
  program.loader->load_constants(program.weights, /*use_inactive=*/false, /*check_full_update=*/true, /*user_managed=*/true);
}

void Engine::allocate() {
  for (const Json& pool : manifest_.at("pools"))
    values_[key("pool", pool.at("name"))] = at::zeros(pool.at("shape").get<Shape>(), dtype(pool.at("dtype")));
  for (const Json& slot : manifest_.at("state")) {
    at::Tensor memory = slot.at("pool").is_null()
        ? at::zeros(slot.at("shape").get<Shape>(), dtype(slot.at("dtype")))
        : values_.at(key("pool", slot.at("pool"))).select(-2, slot.at("row").get<int64_t>());
    values_[key("state", slot.at("name"))] = memory;
  }
  values_[key("clock", "clock")] = at::zeros({3}, at::kFloat);
}

void Engine::take(const Tensors& arguments) {
  for (const Json& leaf : manifest_.at("call").at("leaves")) {
    if (leaf.at("placeholder").is_null()) continue;
    const std::string name = leaf.at("argument");
    auto given = arguments.find(name);
    const at::ScalarType type = dtype(leaf.at("dtype"));
    if (given == arguments.end() || given->second.scalar_type() != type || given->second.sizes().vec() != leaf.at("shape").get<Shape>()) {
      std::string shape;
      for (int64_t size : leaf.at("shape").get<Shape>()) shape += " " + std::to_string(size);
      throw Error(name + ": expected " + leaf.at("dtype").get<std::string>() + " of shape" + shape + "; the engine was built for that");
    }
    values_[key("input", leaf.at("placeholder"))] = given->second.contiguous();
  }
}

at::Tensor Engine::run(const Tensors& arguments) {
  c10::InferenceMode guard;
  take(arguments);
  const Json& timestep = manifest_.at("call").at("timestep");
  if (!timestep.is_null()) {
    const double now = arguments.at(timestep.get<std::string>()).max().item().toDouble();
    if (now > generation_.timestep) reset();
    generation_.timestep = now;
  }
  if (generation_.phases.empty() && programs_.count("INVARIANT")) run_program("INVARIANT");
  if (programs_.count("TIMESTEP")) run_program("TIMESTEP");
  float* clock = values_.at(key("clock", "clock")).data_ptr<float>();
  clock[0] = generation_.counts.since + 1;
  clock[1] = generation_.counts.gap;
  clock[2] = generation_.counts.anchors;
  eps_ = 0;
  if (programs_.count("PREFIX")) run_program("PREFIX");
  return run_program(generation_.decide(schedule_, eps_) ? "FULL" : "ESTIMATE");
}

at::Tensor Engine::run_program(const std::string& phase) {
  Program& program = programs_.at(phase);
  std::vector<at::Tensor> inputs;
  for (const Spec& spec : program.inputs) inputs.push_back(values_.at(key(spec.kind, spec.name)));
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<at::Tensor> results = program.loader->boxed_run(std::move(inputs));
  milliseconds_[phase].push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  if (results.size() != program.outputs.size()) throw Error(phase + " returned another number of tensors than rfc.json says; export again");
  at::Tensor first;
  for (size_t i = 0; i < results.size(); ++i) {
    const Spec& spec = program.outputs[i];
    if (spec.kind == "decision") eps_ = results[i][0].item<float>();
    if (spec.kind == "carry") values_[key("carry", spec.name)] = results[i];
    if (spec.kind == "output" && !first.defined()) first = results[i];
  }
  return first;
}

}  // namespace rfc
