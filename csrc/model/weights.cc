#include "model/weights.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <system_error>
#include <unordered_map>

#include "device/rope.h"
#include "kv/sha256.h"
#include "tensor/check.h"

namespace rtp_llm {
namespace {

// Sum of bytes, eight at a time: even and odd bytes in 16-bit lanes, folded before a lane can overflow.
uint64_t byte_sum(const uint8_t* bytes, int64_t count) {
  constexpr uint64_t kEven = 0x00ff00ff00ff00ffull;
  constexpr int64_t kWordsPerFold = 128;  // 128 * 2 * 255 < 2^16
  uint64_t sum = 0;
  int64_t at = 0;
  while (count - at >= 8) {
    const int64_t words = std::min<int64_t>((count - at) / 8, kWordsPerFold);
    uint64_t lanes = 0;
    for (int64_t i = 0; i < words; ++i) {
      uint64_t word;
      std::memcpy(&word, bytes + at + 8 * i, 8);
      lanes += (word & kEven) + (word >> 8 & kEven);
    }
    for (int shift = 0; shift < 64; shift += 16) sum += lanes >> shift & 0xffff;
    at += 8 * words;
  }
  for (; at < count; ++at) sum += bytes[at];
  return sum;
}

// Bytes of an open file from a place on, and their sum.
class FileBytes {
 public:
  FileBytes(int file, int64_t offset) : file_(file), begin_(offset), at_(offset) {}

  // False: the file has ended. Throws std::system_error.
  bool read(void* to, int64_t bytes) {
    auto* next = static_cast<uint8_t*>(to);
    for (int64_t left = bytes; left > 0;) {
      const ssize_t count = pread(file_, next, static_cast<size_t>(std::min(left, kSummedBytes)), at_);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw std::system_error(errno, std::generic_category(), "reading weights");
      if (count == 0) return false;
      sum_ += byte_sum(next, count);
      next += count, at_ += count, left -= count;
    }
    return true;
  }
  int64_t num_read() const { return at_ - begin_; }
  uint64_t sum() const { return sum_; }

 private:
  static constexpr int64_t kSummedBytes = int64_t{512} << 10;  // read at once, so that they are summed out of the cache

  const int file_;
  const int64_t begin_;
  int64_t at_;
  uint64_t sum_ = 0;
};

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text + "]";
}

struct LayerPackers {
  std::unique_ptr<LinearPacker> qkv, o, gate_up, down;
};

// A weight that was packed in its own memory stays where it is.
void finish_linear(const std::unique_ptr<LinearPacker>& packer, std::unique_ptr<PackedLinear>& weight) {
  if (std::unique_ptr<PackedLinear> packed = packer->finish()) weight = std::move(packed);
}

}  // namespace

// One tensor of the file and where it goes: a part of a linear's weight or bias, or a norm.
struct Weights::FileTensor {
  std::string name;
  std::vector<int64_t> shape;
  LinearPacker* packer = nullptr;  // null: a norm
  int part = 0;
  Tensor* norm = nullptr;

  std::vector<float> staged{};  // 1-D: whole, until finish
  std::vector<bool> row_written{};
  int64_t rows_written = 0;
  DType file_dtype = DType::kF32;
  uint64_t sum = 0;

  bool vector() const { return shape.size() == 1; }
  int64_t row_elements() const { return vector() ? 1 : shape[1]; }
  bool complete() const { return rows_written == shape[0]; }
  // Notes that rows [first_row, first_row + rows) are written. Throws InvalidArgument for what doesn't fit.
  void claim(int64_t first_row, int64_t rows, DType dtype);
};

void Weights::FileTensor::claim(int64_t first_row, int64_t rows, DType dtype) {
  check(rows_written == 0 || file_dtype == dtype, "tensor ", name, ": was ", name_of(file_dtype), ", found rows in ",
        name_of(dtype));
  for (int64_t row = first_row; row < first_row + rows; ++row)
    check(!row_written[row], "tensor ", name, ": row ", row, " comes twice");
  for (int64_t row = first_row; row < first_row + rows; ++row) row_written[row] = true;
  rows_written += rows;
  file_dtype = dtype;
}

struct Weights::Loading {
  std::mutex mutex;                 // guards what is known of tensors while several threads write them
  std::vector<FileTensor> tensors;  // load order
  std::unordered_map<std::string, size_t> by_name;
  std::unique_ptr<LinearPacker> embedding, lm_head;  // embedding: null when tied
  std::vector<LayerPackers> layers;

  void add(FileTensor tensor) {
    tensor.row_written.resize(tensor.shape[0]);
    if (tensor.vector()) tensor.staged.resize(tensor.shape[0]);
    by_name.emplace(tensor.name, tensors.size());
    tensors.push_back(std::move(tensor));
  }

  // A linear whose part i is the file's tensor names[i] + ".weight" and, with a bias, ".bias"; `weight`: as it is now.
  std::unique_ptr<LinearPacker> add_linear(Ops& ops, const std::unique_ptr<PackedLinear>& weight,
                                           const LinearSpec& spec, const std::vector<std::string>& names) {
    std::unique_ptr<LinearPacker> packer = weight ? ops.repack(*weight) : ops.pack(spec);
    for (size_t i = 0; i < names.size(); ++i) {
      const int part = static_cast<int>(i);
      const int64_t rows = spec.parts[i].rows;
      add({.name = names[i] + ".weight", .shape = {rows, spec.in_features}, .packer = packer.get(), .part = part});
      if (spec.bias) add({.name = names[i] + ".bias", .shape = {rows}, .packer = packer.get(), .part = part});
    }
    return packer;
  }

  void add_norm(const std::string& name, int64_t features, Tensor& norm) {
    if (norm.data == nullptr) norm = make_tensor(nullptr, DType::kF32, {features});
    add({.name = name, .shape = {features}, .norm = &norm});
  }

  void add_layer(Ops& ops, const ModelConfig& config, int layer, LayerWeights& weights);
};

void Weights::Loading::add_layer(Ops& ops, const ModelConfig& config, int layer, LayerWeights& weights) {
  const std::string prefix = concat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  const int64_t q_rows = int64_t{config.num_attention_heads} * config.head_dim;
  const int64_t kv_rows = int64_t{config.num_key_value_heads} * config.head_dim;
  const int64_t hidden = config.hidden_size, intermediate = config.intermediate_size;
  LayerPackers packers;

  add_norm(prefix + "input_layernorm.weight", hidden, weights.input_norm);
  packers.qkv = add_linear(ops, weights.qkv,
                           {.name = attention + "qkv_proj",
                            .in_features = hidden,
                            .parts = {{"q", q_rows}, {"k", kv_rows}, {"v", kv_rows}},
                            .bias = config.attention_bias,
                            .dtype = config.dtype},
                           {attention + "q_proj", attention + "k_proj", attention + "v_proj"});
  if (config.qk_norm) {
    add_norm(attention + "q_norm.weight", config.head_dim, weights.q_norm);
    add_norm(attention + "k_norm.weight", config.head_dim, weights.k_norm);
  }
  packers.o = add_linear(ops, weights.o,
                         {.name = attention + "o_proj",
                          .in_features = q_rows,
                          .parts = {{"o", hidden}},
                          .bias = config.attention_output_bias,
                          .dtype = config.dtype,
                          .row_parallel = true},
                         {attention + "o_proj"});
  add_norm(prefix + "post_attention_layernorm.weight", hidden, weights.post_attention_norm);
  packers.gate_up = add_linear(ops, weights.gate_up,
                               {.name = mlp + "gate_up_proj",
                                .in_features = hidden,
                                .parts = {{"gate", intermediate}, {"up", intermediate}},
                                .bias = config.mlp_bias,
                                .dtype = config.dtype,
                                .gated = true},
                               {mlp + "gate_proj", mlp + "up_proj"});
  packers.down = add_linear(ops, weights.down,
                            {.name = mlp + "down_proj",
                             .in_features = intermediate,
                             .parts = {{"down", hidden}},
                             .bias = config.mlp_bias,
                             .dtype = config.dtype,
                             .row_parallel = true},
                            {mlp + "down_proj"});
  layers.push_back(std::move(packers));
}

Weights::Weights(Device& device, const ModelConfig& config) : device_(device), config_(config) {
  config_.validate();
  layers_.resize(config_.num_hidden_layers);  // never resized again: tensors point into it
  open();

  const std::vector<float> frequencies =
      rope_table(config_.head_dim, config_.rope_theta,
                 {.type = config_.rope_scaling,
                  .factor = static_cast<float>(config_.rope_factor),
                  .low_freq_factor = static_cast<float>(config_.rope_low_freq_factor),
                  .high_freq_factor = static_cast<float>(config_.rope_high_freq_factor),
                  .original_max_position_embeddings = static_cast<float>(config_.rope_original_max_position)});
  inv_freq_ = make_tensor(nullptr, DType::kF32, {config_.head_dim / 2});
  place(inv_freq_, "weights.inv_freq", frequencies.data());
}

Weights::~Weights() = default;

void Weights::open() {
  loading_ = std::make_unique<Loading>();
  Ops& ops = device_.ops();
  const bool tied = config_.tie_word_embeddings;
  const auto vocabulary = [&](const char* name, bool gather) {
    return LinearSpec{.name = name,
                      .in_features = config_.hidden_size,
                      .parts = {{name, config_.vocab_size}},
                      .dtype = config_.dtype,
                      .gather = gather};
  };
  std::unique_ptr<LinearPacker>& table = tied ? loading_->lm_head : loading_->embedding;
  table = loading_->add_linear(ops, tied ? lm_head_ : embedding_, vocabulary(tied ? "lm_head" : "embed_tokens", true),
                               {"model.embed_tokens"});
  for (int i = 0; i < config_.num_hidden_layers; ++i) loading_->add_layer(ops, config_, i, layers_[i]);
  loading_->add_norm("model.norm.weight", config_.hidden_size, final_norm_);
  if (!tied) loading_->lm_head = loading_->add_linear(ops, lm_head_, vocabulary("lm_head", false), {"lm_head"});
}

void Weights::reopen() {
  check(!digest_.empty(), "weights that were never finished can't be written anew");
  open();
}

std::vector<ExpectedTensor> Weights::expected() const {
  check(!finished(), "weights are finished: nothing is expected any more");
  std::vector<ExpectedTensor> expected;
  for (const FileTensor& tensor : loading_->tensors) expected.push_back({tensor.name, tensor.shape});
  return expected;
}

Weights::FileTensor& Weights::claim(const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements,
                                    DType dtype) {
  check(!finished(), "tensor ", name, " comes after the weights were finished");
  const auto found = loading_->by_name.find(name);
  check(found != loading_->by_name.end(), "unknown tensor ", name, ", a ", config_.architecture, " has none");
  FileTensor& tensor = loading_->tensors[found->second];
  check(first_row >= 0 && rows >= 0 && first_row + rows <= tensor.shape[0], "tensor ", name, ": expected ",
        shape_text(tensor.shape), ", found rows [", first_row, ", ", first_row + rows, ")");
  check(row_elements == tensor.row_elements(), "tensor ", name, ": expected ", shape_text(tensor.shape),
        ", found rows of ", row_elements, " elements");
  check(dtype == DType::kF32 || dtype == DType::kBF16, "tensor ", name, ": dtype must be float32 or bfloat16, got ",
        name_of(dtype));
  const std::lock_guard lock(loading_->mutex);
  tensor.claim(first_row, rows, dtype);
  return tensor;
}

void Weights::write(const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype,
                    const void* data) {
  write_rows(claim(name, first_row, rows, row_elements, dtype), first_row, rows, dtype, data);
}

void Weights::write_rows(FileTensor& tensor, int64_t first_row, int64_t rows, DType dtype, const void* data) {
  const int64_t width = tensor.row_elements();
  if (tensor.vector()) {
    for (int64_t i = 0; i < rows; ++i)
      tensor.staged[first_row + i] =
          dtype == DType::kF32 ? static_cast<const float*>(data)[i] : to_f32(static_cast<const BFloat16*>(data)[i]);
  } else {
    tensor.packer->write_rows(tensor.part, first_row, make_tensor(const_cast<void*>(data), dtype, {rows, width}));
  }
  const uint64_t sum = byte_sum(static_cast<const uint8_t*>(data), rows * width * size_of(dtype));
  const std::lock_guard lock(loading_->mutex);
  tensor.sum += sum;
}

int64_t Weights::read(const std::string& name, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype,
                      int file, int64_t offset) {
  FileTensor& tensor = claim(name, first_row, rows, row_elements, dtype);
  const int64_t row_bytes = row_elements * size_of(dtype);
  FileBytes from(file, offset);
  if (tensor.vector()) {
    std::vector<uint8_t> data(static_cast<size_t>(rows * row_bytes));
    if (from.read(data.data(), rows * row_bytes)) write_rows(tensor, first_row, rows, dtype, data.data());
    return from.num_read();
  }
  const int64_t most = std::max<int64_t>(1, LinearPacker::kMostFillBytes / row_bytes);
  for (int64_t done = 0; done < rows; done += most) {
    const int64_t here = std::min(most, rows - done);
    const bool filled = tensor.packer->fill_rows(tensor.part, first_row + done, here, row_elements, dtype,
                                                 [&](void* to) { return from.read(to, here * row_bytes); });
    if (!filled) return from.num_read();
  }
  const std::lock_guard lock(loading_->mutex);
  tensor.sum += from.sum();
  return from.num_read();
}

void Weights::finish(uint64_t version) {
  check(!finished(), "weights are finished already");
  check_complete();
  for (FileTensor& tensor : loading_->tensors) {
    if (tensor.norm != nullptr) {
      place(*tensor.norm, "weights." + tensor.name, tensor.staged.data());
    } else if (tensor.vector()) {
      tensor.packer->write_bias(tensor.part, make_tensor(tensor.staged.data(), DType::kF32, {tensor.shape[0]}));
    }
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    LayerPackers& packers = loading_->layers[i];
    finish_linear(packers.qkv, layers_[i].qkv);
    finish_linear(packers.o, layers_[i].o);
    finish_linear(packers.gate_up, layers_[i].gate_up);
    finish_linear(packers.down, layers_[i].down);
  }
  if (loading_->embedding) finish_linear(loading_->embedding, embedding_);
  finish_linear(loading_->lm_head, lm_head_);

  std::string summary = config_.canonical_text();
  for (const FileTensor& tensor : loading_->tensors)
    summary +=
        concat(tensor.name, " ", name_of(tensor.file_dtype), " ", shape_text(tensor.shape), " ", tensor.sum, "\n");
  if (version != 0) summary += concat("version ", version, "\n");
  // Where it is the same nothing is written: other threads read it.
  if (std::string digest = sha256_hex(summary); digest != digest_) digest_ = std::move(digest);
  loading_.reset();
}

void Weights::check_complete() const {
  constexpr int kNamed = 10;
  int count = 0;
  std::string names;
  for (const FileTensor& tensor : loading_->tensors) {
    if (tensor.complete() || ++count > kNamed) continue;
    names += concat(names.empty() ? "" : ", ", tensor.name);
    if (tensor.rows_written > 0) names += concat(" (", tensor.rows_written, " of ", tensor.shape[0], " rows)");
  }
  check(count == 0, count, " of ", loading_->tensors.size(), " tensors are missing: ", names,
        count > kNamed ? ", ..." : "");
}

void Weights::place(Tensor& tensor, const std::string& tag, const float* values) {
  const int64_t bytes = tensor.numel() * size_of(tensor.dtype);
  if (tensor.data == nullptr) {
    buffers_.push_back(device_.allocate(bytes, tag));
    tensor.data = buffers_.back().data();
  }
  device_.copy(tensor.data, values, bytes);
}

const std::string& Weights::digest() const {
  check(!digest_.empty(), "the model digest is known when the weights are finished");
  return digest_;
}

const PackedLinear& Weights::embedding() const { return embedding_ ? *embedding_ : lm_head(); }

const PackedLinear& Weights::lm_head() const {
  check(finished(), "weights are not finished");
  return *lm_head_;
}

}  // namespace rtp_llm
