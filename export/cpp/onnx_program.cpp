#include "program.h"

#ifdef RFC_ENGINE_ONNX

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <onnxruntime_cxx_api.h>

#include <set>

namespace rfc {

namespace {

ONNXTensorElementDataType element_type(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case at::kDouble: return ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE;
    case at::kHalf: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case at::kBFloat16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case at::kFloat8_e4m3fn: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E4M3FN;
    case at::kLong: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case at::kInt: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case at::kShort: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16;
    case at::kChar: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
    case at::kByte: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case at::kBool: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    default: throw Error(std::string("ONNX has no type for ") + at::toString(type));
  }
}

// The tensor as ONNX Runtime takes it, in the same memory.
Ort::Value shared(const at::Tensor& tensor) {
  static char nowhere;  // a tensor without elements has the address 0, which is refused
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  void* address = tensor.numel() ? tensor.data_ptr() : &nowhere;
  return Ort::Value::CreateTensor(memory, address, tensor.nbytes(), tensor.sizes().data(), tensor.dim(), element_type(tensor.scalar_type()));
}

// One for the process, made with the first session.
Ort::Env& environment() {
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr)
    throw Error(std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() + " is older than the headers that this program was built with");
  static Ort::Env made(ORT_LOGGING_LEVEL_FATAL, "rfc_engine");
  return made;
}

class OnnxProgram : public Program {
 public:
  OnnxProgram(Ort::Env& environment, const ProgramFile& file, const Tensors& weights) : Program(file.spec) {
    for (const auto& [name, stored] : file.spec.at("weights").items()) {
      auto found = weights.find(stored.get<std::string>());
      if (found == weights.end()) throw Error(file.path().string() + ": the weight " + name + " is not there; export again");
      weights_.push_back(found->second);
      values_.push_back(shared(found->second));
    }
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_FATAL);
    options.SetIntraOpNumThreads(at::get_num_threads());
    options.AddConfigEntry("session.force_spinning_stop", "1");  // programs take turns; their idle threads shall not compete
    options.AddConfigEntry("session.disable_prepacking", "1");   // packed weights would be a second copy of each
    // they give weights another shape under their own names, and sessions read shared ones
    options.AddConfigEntry("optimization.disable_specified_optimizers", "TransposeOptimizer;TransposeOptimizer_CPUExecutionProvider");
    size_t index = 0;
    for (const auto& [name, stored] : file.spec.at("weights").items()) options.AddInitializer(name.c_str(), values_[index++]);
    session_ = Ort::Session(environment, file.path().c_str(), options);
    Ort::AllocatorWithDefaultOptions allocator;
    for (size_t i = 0; i < session_.GetInputCount(); ++i) {  // ONNX drops inputs that nothing reads
      positions_.push_back(find(inputs, session_.GetInputNameAllocated(i, allocator).get(), session_.GetInputTypeInfo(i), file));
      input_names_.push_back(key(inputs[positions_.back()]));
    }
    std::set<size_t> there;
    for (size_t i = 0; i < session_.GetOutputCount(); ++i)
      there.insert(find(outputs, session_.GetOutputNameAllocated(i, allocator).get(), session_.GetOutputTypeInfo(i), file));
    if (there.size() != outputs.size()) throw Error(file.path().string() + ": has other outputs than rfc.json says: another program; export again");
    for (const TensorSpec& spec : outputs) output_names_.push_back(key(spec));
  }

  std::vector<at::Tensor> run(std::vector<at::Tensor> given, const std::vector<at::Tensor>& into) override {
    std::vector<Ort::Value> in, out;
    std::vector<at::Tensor> contiguous, results;
    for (size_t position : positions_) in.push_back(shared(contiguous.emplace_back(given.at(position).contiguous())));
    for (size_t i = 0; i < outputs.size(); ++i) {
      results.push_back(into.at(i).defined() ? into[i] : at::empty(outputs[i].shape, outputs[i].type));
      out.push_back(shared(results.back()));
    }
    const auto in_names = pointers(input_names_), out_names = pointers(output_names_);
    session_.Run(Ort::RunOptions{nullptr}, in_names.data(), in.data(), in.size(), out_names.data(), out.data(), out.size());
    return results;
  }

 private:
  static std::string key(const TensorSpec& spec) { return rfc::key(spec.kind, spec.name); }

  static std::vector<const char*> pointers(const std::vector<std::string>& names) {
    std::vector<const char*> made;
    for (const std::string& name : names) made.push_back(name.c_str());
    return made;
  }

  // Where `name` is among the specs; Error where it is not, or of another type or shape.
  static size_t find(const std::vector<TensorSpec>& specs, const std::string& name, const Ort::TypeInfo& type, const ProgramFile& file) {
    const auto tensor = type.GetTensorTypeAndShapeInfo();
    for (size_t i = 0; i < specs.size(); ++i)
      if (key(specs[i]) == name && specs[i].shape == tensor.GetShape() && element_type(specs[i].type) == tensor.GetElementType()) return i;
    throw Error(file.path().string() + ": " + name + " is not what rfc.json says of " + file.phase + ": another program; export again");
  }

  std::vector<at::Tensor> weights_;  // kept alive: the session reads them where they lie
  std::vector<Ort::Value> values_;
  Ort::Session session_{nullptr};
  std::vector<size_t> positions_;
  std::vector<std::string> input_names_, output_names_;
};

}  // namespace

std::unique_ptr<Program> open_onnx(const ProgramFile& file, const Tensors& weights) {
  try {
    return std::make_unique<OnnxProgram>(environment(), file, weights);
  } catch (const Ort::Exception& error) {
    throw Error(file.path().string() + ": ONNX Runtime cannot open it: " + error.what());
  }
}

}  // namespace rfc

#else

namespace rfc {

std::unique_ptr<Program> open_onnx(const ProgramFile& file, const Tensors&) {
  throw Error(file.folder.string() + ": for ONNX Runtime, which this program was built without; build it with -DRFC_ENGINE_ONNX=ON");
}

}  // namespace rfc

#endif
