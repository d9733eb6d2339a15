// Weights: named slots of a model, shape-checked, filled by a loader that streams file chunks.
//
// Slot names are Hugging Face's tensor names ("model.layers.3.self_attn.q_proj.weight"); fused
// slots (qkv, gate_up) take their parts under the parts' own names. Owner: Decoder reads them; they
// live as long as it does.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "device/ops.h"
#include "model/model_config.h"

namespace rtp_llm {

struct LayerWeights {
  Tensor input_norm, post_attention_norm;  // [hidden] f32
  Tensor q_norm, k_norm;                   // [head_dim] f32, empty without qk_norm
  std::unique_ptr<PackedLinear> qkv;       // parts q, k, v
  std::unique_ptr<PackedLinear> o;
  std::unique_ptr<PackedLinear> gate_up;  // parts gate, up
  std::unique_ptr<PackedLinear> down;
};

// What the file must hold.
struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
};

class Weights {
 public:
  Weights(Device& device, const ModelConfig& config);
  ~Weights();

  // Every tensor that the model needs, in load order. A tied model expects no lm_head.weight.
  std::vector<ExpectedTensor> expected() const;

  // Rows [first_row, first_row + rows) of a tensor (1-D: elements, row_elements = 1); `data` in
  // `dtype` (f32 or bf16), host memory. Throws InvalidArgument: unknown name, rows out of range
  // (expected and found), wrong width, a row that comes twice, another dtype than before. Several threads may write at
  // the same time.
  void write(const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype,
             const void* data);
  // The same rows from an open file, in which they lie one after the other from `offset` on. Returns their bytes, or
  // how many are left in the file: then it ended too early. Throws what write() throws, and std::system_error.
  int64_t read(const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype, int file,
               int64_t offset);
  // Finishes packing. Throws InvalidArgument naming every missing or incomplete tensor (the first
  // 10 and a count); writing may go on then. `version` makes the digest another one where it isn't 0.
  void finish(uint64_t version = 0);

  // From here on every tensor is expected again, and takes the place of what it was, in the same memory; also after a
  // load that was broken off. The digest stays that of before until finish(). REQUIRES: finished once; no step runs
  // until it is finished again.
  void reopen();

  // Model digest: SHA-256 hex of config, of (name, dtype, shape, byte sum) of each tensor,
  // summed while loading, and of the version; the same for any order and size of chunks. REQUIRES: finished once.
  const std::string& digest() const;

  bool finished() const { return loading_ == nullptr; }
  const ModelConfig& config() const { return config_; }
  const std::vector<LayerWeights>& layers() const { return layers_; }
  const PackedLinear& embedding() const;  // gather = true; the lm_head's when tied
  const PackedLinear& lm_head() const;
  const Tensor& final_norm() const { return final_norm_; }
  const Tensor& inv_freq() const { return inv_freq_; }

 private:
  struct Loading;
  struct FileTensor;
  void open();
  // The tensor, whose rows are known to fit and to come once.
  FileTensor& claim(const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype);
  void write_rows(FileTensor& tensor, int64_t first_row, int64_t rows, DType dtype, const void* data);
  void check_complete() const;
  // Device memory for the tensor, unless it has its own, filled with `values`.
  void place(Tensor& tensor, const std::string& tag, const float* values);

  Device& device_;
  ModelConfig config_;
  std::vector<LayerWeights> layers_;
  std::unique_ptr<PackedLinear> embedding_, lm_head_;
  Tensor final_norm_, inv_freq_;
  std::vector<Buffer> buffers_;
  std::unique_ptr<Loading> loading_;
  std::string digest_;
};

}  // namespace rtp_llm
