#include "engine.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

namespace rfc {

namespace {

// Rules that look a step up in the table of a generation's full steps.
const std::set<std::string> kPlaced = {"Listed", "Placed", "LogSNRPlaced", "ChebyshevPlaced", "MagnitudePlaced", "GrowingWindow", "Weighted"};

// The table's entry for a step; its first for all before the first step, its last for all beyond.
float row(const std::vector<float>& table, float step) {
  return table.at(static_cast<size_t>(std::clamp(step, 0.0f, static_cast<float>(table.size()) - 1)));
}

// The numbers of a decision; Error where they are those of no list yet.
Numbers numbers_of(const Json& method, const Json& decision) {
  if (decision.at("rule") == "LogSNRPlaced" && method.at("schedule").at("lambdas").is_null())
    throw Error("method.schedule: the noise levels are not known, and every step would be full; export with --method log-snr --steps NUMBER");
  Numbers numbers;
  for (const auto& [name, given] : decision.at("numbers").items())
    for (const Json& one : given)
      numbers[name].push_back(one.is_string() ? std::numeric_limits<float>::infinity() : one.get<float>());
  return numbers;
}

// Bookkeeping of a program that decides: parts of "progress", and rows of "log" (rfc_fx/ir/progress.py).
enum Progress { kStep, kSince, kGap, kAnchors, kTotal, kTimestep, kRestart };

}  // namespace

Schedule::Schedule(const Json& method, const Json& decision)
    : rule_(decision.at("rule").get<std::string>()), numbers_(numbers_of(method, decision)) {
  if (rule_ != "RCS" && rule_ != "Every" && !kPlaced.count(rule_))
    throw Error("decision.rule: " + rule_ + "; this program knows RCS, Every and lists of full steps (Placed, LogSNR, Chebyshev, MagCache, Spectrum, fitted), "
                "and all rules of engines that decide by themselves; export with --dispatch cond");
  if (kPlaced.count(rule_) && numbers_["table"].empty()) throw Error("decision.numbers: " + rule_ + " has no table of full steps; export again");
  if (rule_ == "RCS" && method.at("schedule").at("lagged").get<bool>())
    throw Error("method.schedule: this program decides with the step's own error; export with lagged=False");
}

bool Schedule::full(float step, float k, float total) const {
  if (kPlaced.count(rule_)) return row(numbers_.at("table"), step) > 0;
  if (rule_ == "Every") return step < number("warmup") || k >= number("interval");
  return step < number("warmup") || !(total <= number("tau")) || k > number("max_skip");
}

std::vector<float> Schedule::clock(float step, const Counts& counts) const {
  const float k = counts.since + 1;
  std::vector<float> clock = {k, counts.gap, counts.anchors};
  if (const auto times = numbers_.find("times"); times != numbers_.end()) {
    const float now = row(times->second, step), last = row(times->second, step - k), before = row(times->second, step - k - counts.gap);
    clock = {now - last, last - before, counts.anchors};
  }
  if (numbers_.count("weights")) {
    const auto& weights = numbers_.at("weights");
    const auto& since = numbers_.at("since");
    const size_t count = weights.size() / since.size();
    const auto at = static_cast<size_t>(std::clamp(step, 0.0f, static_cast<float>(since.size()) - 1));
    for (size_t i = 0; i < count; ++i) clock.push_back(since[at] == k ? weights[at * count + i] : 0.0f);
  }
  return clock;
}

bool Generation::decide(const Schedule& schedule, float eps) {
  counts = observe(counts, eps);
  const bool full = counts.anchors == 0 || schedule.full(static_cast<float>(phases.size()), counts.since + 1, counts.total);
  phases += full ? 'F' : 'E';
  counts = advance(counts, full);
  return full;
}

void Generation::follow(const at::Tensor& progress, const at::Tensor& log) {
  const float* now = progress.const_data_ptr<float>();
  const int64_t step = static_cast<int64_t>(now[kStep]);
  if (step == 1) phases.clear();
  phases += log[std::min(step, log.size(0)) - 1][0].item<float>() > 0 ? 'F' : 'E';
  counts = {now[kSince], now[kGap], now[kAnchors], now[kTotal]};
  timestep = now[kTimestep];
}

Engine::Engine(const std::filesystem::path& folder)
    : manifest_(read_manifest(folder)), device_(manifest_.at("target").at("device").get<std::string>()) {
  const Tensors stored = read_weights(folder / "weights.safetensors");
  Tensors weights;  // on a CPU in the file's own memory
  for (const auto& [name, tensor] : stored) weights[name] = tensor.to(device_);
  const auto open = manifest_.at("backend") == "onnx" ? open_onnx : open_aoti;
  for (const Json& spec : manifest_.at("sets")) {
    Set set;
    set.spec = spec;
    if (decides_in_program()) {
      for (const auto& [name, given] : numbers_of(manifest_.at("method"), spec.at("decision")))
        set.numbers[name] = at::tensor(given, at::kFloat);
    } else {
      set.schedule.emplace(manifest_.at("method"), spec.at("decision"));
    }
    for (const auto& [phase, program] : spec.at("programs").items())
      set.programs[phase] = open({folder, manifest_, phase, program}, weights);
    for (const Json& leaf : spec.at("call").at("leaves"))
      if (!leaf.at("fixed").is_null()) set.fixed[leaf.at("argument")] = stored.at(leaf.at("fixed"));
    for (const auto& [phase, program] : set.programs)
      for (const TensorSpec& one : program->inputs)
        if (one.kind == "numbers") set.numbers.at(one.name) = set.numbers.at(one.name).to(device_, one.type).reshape(one.shape);
    sets_.push_back(std::move(set));
  }
}

Program::Program(const Json& spec) {
  for (const Json& one : spec.at("inputs")) inputs.push_back({one.at("kind"), one.at("name"), dtype(one.at("dtype")), one.at("shape")});
  for (const Json& one : spec.at("outputs")) outputs.push_back({one.at("kind"), one.at("name"), dtype(one.at("dtype")), one.at("shape")});
}

Engine::Lane Engine::allocate(const Set& set) const {
  Lane lane;
  const auto zeros = [this](const Json& spec) {
    return at::zeros(spec.at("shape").get<Shape>(), at::TensorOptions(device_).dtype(dtype(spec.at("dtype"))));
  };
  for (const auto& [name, tensor] : set.numbers) lane.values[key("numbers", name)] = tensor;
  for (const Json& pool : set.spec.at("pools"))
    lane.values[key("pool", pool.at("name"))] = zeros(pool);
  for (const Json& slot : set.spec.at("state")) {
    at::Tensor memory = slot.at("pool").is_null()
        ? zeros(slot)
        : lane.values.at(key("pool", slot.at("pool"))).select(-2, slot.at("row").get<int64_t>());
    lane.values[key("state", slot.at("name"))] = memory;
  }
  return lane;
}

// Why a call is not that of these programs; empty where it is.
std::string Engine::refusal(const Set& set, const Tensors& arguments) {
  for (const Json& leaf : set.spec.at("call").at("leaves")) {
    if (leaf.at("placeholder").is_null() && leaf.at("fixed").is_null()) continue;
    const std::string name = leaf.at("argument");
    auto given = arguments.find(name);
    const at::ScalarType type = dtype(leaf.at("dtype"));
    if (given == arguments.end() || given->second.scalar_type() != type || given->second.sizes().vec() != leaf.at("shape").get<Shape>()) {
      std::string shape;
      for (int64_t size : leaf.at("shape").get<Shape>()) shape += " " + std::to_string(size);
      return name + ": expected " + leaf.at("dtype").get<std::string>() + " of shape" + shape;
    }
    auto fixed = set.fixed.find(name);
    if (fixed != set.fixed.end() && !at::equal(given->second.cpu(), fixed->second)) return name + ": has other values than at export";
  }
  return "";
}

size_t Engine::pick(const Tensors& arguments) const {
  std::string reasons;
  for (size_t i = 0; i < sets_.size(); ++i) {
    const std::string reason = refusal(sets_[i], arguments);
    if (reason.empty()) return i;
    reasons += (reasons.empty() ? "" : "; or ") + reason;
  }
  throw Error(reasons + "; the engine was built for that: add a call with rfc-fx export --add");
}

void Engine::reset() {
  lane_ = nullptr;
  for (auto& [name, lane] : lanes_) {
    lane.generation = {};
    auto progress = lane.values.find(key("state", "progress"));
    if (progress != lane.values.end() && decides_in_program()) progress->second.select(0, kRestart).fill_(1);
  }
}

std::vector<at::Tensor> Engine::run(const Tensors& arguments, const std::string& context) {
  c10::InferenceMode guard;
  const size_t number = pick(arguments);
  Set& set = sets_[number];
  auto found = lanes_.find({number, context});
  if (found == lanes_.end()) found = lanes_.emplace(std::pair{number, context}, allocate(set)).first;
  Lane& lane = *(lane_ = &found->second);
  for (const Json& leaf : set.spec.at("call").at("leaves"))
    if (!leaf.at("placeholder").is_null()) lane.values[key("input", leaf.at("placeholder"))] = arguments.at(leaf.at("argument")).to(device_).contiguous();
  std::vector<at::Tensor> outputs = decides_in_program() ? run_cond(set, lane) : run_host(set, lane, arguments);
  for (at::Tensor& output : outputs) output = output.to(arguments.begin()->second.device());
  return outputs;
}

std::vector<at::Tensor> Engine::run_cond(Set& set, Lane& lane) {
  const std::vector<at::Tensor> outputs = run_program(set, lane, "STEP");
  lane.generation.follow(lane.values.at(key("state", "progress")).cpu(), lane.values.at(key("state", "log")).cpu());
  milliseconds_[lane.generation.phases.back() == 'F' ? "FULL" : "ESTIMATE"].push_back(milliseconds_.at("STEP").back());
  return outputs;
}

std::vector<at::Tensor> Engine::run_host(Set& set, Lane& lane, const Tensors& arguments) {
  const Json& timestep = set.spec.at("call").at("timestep");
  if (!timestep.is_null()) {
    const double now = arguments.at(timestep.get<std::string>()).max().item().toDouble();
    if (now > lane.generation.timestep) lane.generation = {};
    lane.generation.timestep = now;
  }
  if (lane.generation.phases.empty() && set.programs.count("INVARIANT")) run_program(set, lane, "INVARIANT");
  if (set.programs.count("TIMESTEP")) run_program(set, lane, "TIMESTEP");
  const std::vector<float> clock = set.schedule->clock(static_cast<float>(lane.generation.phases.size()), lane.generation.counts);
  at::Tensor& packed = lane.values[key("clock", "clock")];
  if (!packed.defined()) packed = at::zeros({static_cast<int64_t>(clock.size())}, at::TensorOptions(device_).dtype(at::kFloat));
  packed.copy_(at::tensor(clock, at::kFloat));
  lane.eps = 0;
  if (set.programs.count("PREFIX")) run_program(set, lane, "PREFIX");
  return run_program(set, lane, lane.generation.decide(*set.schedule, lane.eps) ? "FULL" : "ESTIMATE");
}

std::vector<at::Tensor> Engine::run_program(Set& set, Lane& lane, const std::string& phase) {
  Program& program = *set.programs.at(phase);
  std::vector<at::Tensor> inputs, into;
  for (const TensorSpec& spec : program.inputs) {
    const bool is_state = spec.kind == "progress" || spec.kind == "log";
    inputs.push_back(lane.values.at(key(is_state ? "state" : spec.kind, spec.name)));
  }
  for (const TensorSpec& spec : program.outputs) into.push_back(spec.kind == "next" ? lane.spare[spec.name] : at::Tensor());
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<at::Tensor> results = program.run(std::move(inputs), into);
  milliseconds_[phase].push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  if (results.size() != program.outputs.size()) throw Error(phase + " returned another number of tensors than rfc.json says; export again");
  std::vector<at::Tensor> outputs;
  for (size_t i = 0; i < results.size(); ++i) {
    const TensorSpec& spec = program.outputs[i];
    if (spec.kind == "decision") lane.eps = results[i][0].item<float>();
    if (spec.kind == "carry") lane.values[key("carry", spec.name)] = results[i];
    if (spec.kind == "output") {
      const size_t number = std::stoul(spec.name);
      if (outputs.size() <= number) outputs.resize(number + 1);
      outputs[number] = results[i];
    }
    if (spec.kind == "next") lane.spare[spec.name] = std::exchange(lane.values.at(key("state", spec.name)), results[i]);
  }
  return outputs;
}

}  // namespace rfc
