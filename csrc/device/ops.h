// Ops: what a backend computes, in levels.
//
// Level 0 is required. Level 1 has a default here that calls level 0; a backend overrides what it does better.
// Each op takes a struct of arguments (designated initialisers); outputs and workspace are passed in, nothing is
// allocated. Activations are [rows, features], rows contiguous or strided, features contiguous.
//
// Numerics contract: a row's result is a function of that row alone, bitwise the same whatever the other rows, its
// place in the batch, the chunking, the block size or the thread count. docs/numerics.md has the rules per op.
//
// Thread rule: called from the engine thread, one op at a time. On a device that runs behind the host an op is launched
// on its main stream, in the order of the calls, and the call returns; what Args point at in host memory (StepRows and
// its spans, Slots, lists of ids) stays unchanged until that work is done. Ops check shapes, and what of the values
// lies in host memory, and throw InvalidArgument.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "device/device.h"
#include "device/kv_view.h"
#include "device/slots.h"
#include "device/step_rows.h"
#include "tensor/qtensor.h"
#include "tensor/tensor.h"

namespace rtp_llm {

// ---- Weights ------------------------------------------------------------------------------------------------------

// One named part of a fused weight, e.g. q, k, v of qkv or gate, up of gate_up: `rows` output features.
struct LinearPart {
  std::string name;
  int64_t rows = 0;
};

struct LinearSpec {
  std::string name;               // for errors and allocation tags
  int64_t in_features = 0;        // K
  std::vector<LinearPart> parts;  // stacked over N in this order
  bool bias = false;
  DType dtype = DType::kF32;  // f32 or bf16: the type that weights are multiplied in
  bool gather = false;        // also read by `embedding` (tied lm_head)
  bool gated = false;         // parts are gate and up: multiplied by `gated_mlp` only
  bool row_parallel = false;  // o, down: summed over K as a tree (DeviceOptions::tree_leaves)

  int64_t out_features() const {
    int64_t total = 0;
    for (const LinearPart& part : parts) total += part.rows;
    return total;
  }
};

// A weight as the backend laid it out. Opaque; owned by Weights.
class PackedLinear {
 public:
  virtual ~PackedLinear() = default;
  const LinearSpec& spec() const { return spec_; }

 protected:
  explicit PackedLinear(LinearSpec spec) : spec_(std::move(spec)) {}
  LinearSpec spec_;
};

// Takes a weight chunk by chunk as the loader streams the file; the backend decides where each row lies. Several
// threads may write rows, of one weight or of several, at the same time.
class LinearPacker {
 public:
  virtual ~LinearPacker() = default;
  // Rows [first_row, first_row + rows.shape[0]) of part `part`; rows: [n, in_features] f32 or bf16, host memory.
  // f32 -> bf16 rounds to nearest even. Each row must come exactly once.
  virtual void write_rows(int part, int64_t first_row, const Tensor& rows) = 0;
  // The same for at most kMostFillBytes, or one row: `fill` writes them to where the backend wants them to lie. It says
  // whether it could; if not, or if it throws, no row is written, and fill_rows returns false, or throws.
  static constexpr int64_t kMostFillBytes = int64_t{4} << 20;
  using Fill = std::function<bool(void*)>;
  virtual bool fill_rows(int part, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype,
                         const Fill& fill);
  virtual void write_bias(int part, const Tensor& bias) = 0;  // [part.rows] f32 or bf16, host memory
  // Throws InvalidArgument naming spec, part and rows if something is missing. Null: the weight was there already
  // (Ops::repack).
  virtual std::unique_ptr<PackedLinear> finish() = 0;
};

// ---- Arguments, level 0 -------------------------------------------------------------------------------------------

struct LinearArgs {
  Tensor x;  // [M, K], f32 or bf16; rounded to the weight's dtype if that is bf16
  const PackedLinear* weight = nullptr;
  Tensor out;         // [M, N], f32 or bf16; may be strided by rows
  Tensor residual{};  // [M, N] or empty: out = x W^T + bias + residual; may alias out
};

struct EmbeddingArgs {
  Tensor tokens;                        // [M] i32; kTokenFromSlot takes last_token of the row's slot
  const PackedLinear* table = nullptr;  // gather = true, [vocab, hidden]
  const StepRows* step = nullptr;
  Tensor out;  // [M, hidden] f32 or bf16
};
inline constexpr int32_t kTokenFromSlot = -1;

struct NormArgs {
  Tensor x;       // [M, features]; for q/k norm [M, heads, head_dim], normed over head_dim
  Tensor weight;  // [features] f32
  Tensor bias{};  // layer_norm only, [features] f32 or empty
  float epsilon = 1e-6f;
  Tensor out;  // like x, f32 or bf16; may alias x if the types are equal
};

enum class RopeScaling : uint8_t { kNone, kLlama3 };

// Inverse frequencies [rotary_dim / 2] in f32, made once on the host by `rope_table` (device/rope.h).
struct RopeArgs {
  Tensor x;         // [M, heads, head_dim] of ActivationTypes::qkv, in place; rotate_half form (Hugging Face's)
  Tensor inv_freq;  // [head_dim / 2] f32
  const StepRows* step = nullptr;
};

struct StoreKvArgs {
  Tensor k;  // [M, kv_heads, head_dim] f32 or bf16: rounded to the view's dtype
  Tensor v;
  KvView kv;
  const StepRows* step = nullptr;
};

// Causal attention of each row over all stored positions up to its own (store_kv of the step has run). The prefill op
// computes the rows of step->prefills, the decode op those of step->decodes; neither touches the other's rows of out.
struct AttentionArgs {
  Tensor q;  // [M, heads, head_dim] f32 or bf16
  KvView kv;
  const StepRows* step = nullptr;
  float scale = 1.0f;
  Tensor out;          // [M, heads * head_dim] f32 or bf16
  Tensor workspace{};  // u8, at least attention_workspace_bytes()
};

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh };

struct GatedActivationArgs {
  Tensor gate_up;  // [M, 2 * features]: gate | up
  Activation activation = Activation::kSilu;
  Tensor out;  // [M, features] = act(gate) * up, f32 or bf16
};

struct GatherRowsArgs {  // out[i] = x[rows[i]]
  Tensor x;              // [M, features]
  Tensor rows;           // [R] i32
  Tensor out;            // [R, features]
};

// Samples one token for each of step->sample_rows and stores it: last_token[slot] = token, output_position[slot] += 1.
// Token = argmax over kept tokens of logprob / T + g, ties to the lowest id; g by Philox (device/philox.h).
// Before that a slot's token words say which tokens may come and change logits (device/token_rules.h); the chosen token
// is counted there. Reported logprobs: log_softmax of the raw logits, f32.
// Cuts, on softmax(logits / T) over the tokens that may come: min_p, then top_k, then top_p of what is left (the
// shortest prefix, highest first, with at least top_p); all ties by the lowest id. temperature 0 is greedy.
// tokens[i], logprobs[i], top_*[i] belong to sample_rows[i]; `allowed` is indexed by row, as logits are.
// A row in which no token may come (nothing allowed, or no logit is a number) gets token -1; its slot stays as it was.
struct SampleArgs {
  Tensor logits;  // [R, vocab] f32
  const StepRows* step = nullptr;
  Tensor allowed{};     // [R, ceil(vocab / 32)] i32 bitmask or empty: all allowed
  Tensor tokens;        // [R] i32
  Tensor logprobs;      // [R] f32: of the sampled token
  Tensor top_tokens;    // [R, max_logprobs] i32, descending, ties to the lowest id; -1 beyond num_logprobs
  Tensor top_logprobs;  // [R, max_logprobs] f32
  Tensor workspace;     // u8, at least sample_workspace_bytes(R, vocab)
};
inline constexpr int kMaxLogprobs = 20;

// seq_len[slot] += rows of each segment. Ends a forward.
struct AdvanceArgs {
  const StepRows* step = nullptr;
};

// Writes into slots what the host knows of their sequences, before a step's embedding. Slots are distinct. List, ids
// and words are here twice, as in StepRows: in host memory, and in device memory.
struct UpdateSlotsArgs {
  const Slots* slots = nullptr;
  std::span<const SlotUpdate> updates;
  std::span<const int32_t> blocks;  // the updates' block ids
  std::span<const int32_t> words;   // what they say of tokens
  const SlotUpdate* device_updates = nullptr;
  const int32_t* device_blocks = nullptr;
  const int32_t* device_words = nullptr;
};

// Fills whole blocks of the pool with zeros: a masked position has weight 0, and 0 * NaN is NaN.
struct ZeroBlocksArgs {
  uint8_t* base = nullptr;  // block b is [base + b * block_bytes, base + (b + 1) * block_bytes)
  int64_t block_bytes = 0;
  std::span<const int32_t> blocks;         // host memory
  const int32_t* device_blocks = nullptr;  // the same ids, device memory
};

// The checksum of DESIGN 4 over token vectors of one block: every (layer, plane, head, token) in the ranges.
struct ChecksumArgs {
  KvView kv;  // of the group's layer
  int group = 0;
  int layer = 0;  // index within the group
  int32_t block = 0;
  int64_t first_position = 0;  // absolute position of the block's token `first_token`
  int first_token = 0;
  int tokens = 0;
};

// ---- Arguments, level 1 -------------------------------------------------------------------------------------------

struct AddRmsNormArgs {
  Tensor x;  // [M, features]: the stream; x += delta first (delta may be empty)
  Tensor delta{};
  Tensor weight;
  float epsilon = 1e-6f;
  QTensor out;  // normed
};

struct QkvRopeStoreArgs {
  Tensor qkv;  // [M, (heads + 2 kv_heads) * head_dim] of ActivationTypes::qkv, norm and rope in place on q and k
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  Tensor q_norm{};  // [head_dim] f32 or empty
  Tensor k_norm{};
  float norm_epsilon = 1e-6f;
  Tensor inv_freq;
  KvView kv;
  const StepRows* step = nullptr;
  Tensor table{};  // that rope_table wrote for this step, or empty: the same results, slower
};

// What all layers of a step need to know of its rows' positions, in a form of the backend's own.
struct RopeTableArgs {
  Tensor inv_freq;
  KvView kv;  // any layer's
  const StepRows* step = nullptr;
  Tensor table;  // u8, at least rope_table_bytes()
};

struct GatedMlpArgs {
  Tensor x;  // [M, hidden]
  const PackedLinear* gate_up = nullptr;
  const PackedLinear* down = nullptr;
  Activation activation = Activation::kSilu;
  Tensor gate_up_out;  // [M, 2 * intermediate] workspace; holds nothing afterwards
  Tensor activated;    // [M, intermediate] workspace
  Tensor residual{};   // [M, hidden]
  Tensor out;          // [M, hidden]
};

// ---- Ops ----------------------------------------------------------------------------------------------------------

// Types that activations have for a model of the given weight dtype.
struct ActivationTypes {
  DType stream;  // residual stream, linear outputs
  DType input;   // what linears read: norm outputs, attention outputs, activated
  DType qkv;     // q, k and v before and after rope, until attention and store_kv read them
};

class Ops {
 public:
  virtual ~Ops() = default;

  virtual bool forms_equal() const = 0;
  virtual ActivationTypes activation_types(DType weight_dtype) const = 0;

  virtual std::unique_ptr<LinearPacker> pack(const LinearSpec& spec) = 0;
  // Rows take the place of those of `weight`, in its memory, and all of them must come. Until then it holds some of
  // both. REQUIRES: no op that reads it is launched until then, and it outlives the packer.
  virtual std::unique_ptr<LinearPacker> repack(PackedLinear& weight) = 0;

  // Level 0.
  virtual void linear(const LinearArgs& args) = 0;
  virtual void embedding(const EmbeddingArgs& args) = 0;
  virtual void rms_norm(const NormArgs& args) = 0;
  virtual void layer_norm(const NormArgs& args) = 0;
  virtual void rope(const RopeArgs& args) = 0;
  virtual void store_kv(const StoreKvArgs& args) = 0;
  virtual void paged_attention_prefill(const AttentionArgs& args) = 0;
  virtual void paged_attention_decode(const AttentionArgs& args) = 0;
  virtual void gated_activation(const GatedActivationArgs& args) = 0;
  virtual void gather_rows(const GatherRowsArgs& args) = 0;
  virtual void add(const Tensor& x, const Tensor& delta) = 0;  // x += delta, [M, features]
  virtual void sample(const SampleArgs& args) = 0;
  virtual void advance(const AdvanceArgs& args) = 0;
  virtual void update_slots(const UpdateSlotsArgs& args) = 0;
  virtual void zero_blocks(const ZeroBlocksArgs& args) = 0;
  virtual int64_t attention_workspace_bytes(int64_t max_rows, int num_heads, int num_kv_heads, int head_dim,
                                            int64_t max_positions) const = 0;
  virtual int64_t sample_workspace_bytes(int64_t max_rows, int64_t vocab) const = 0;

  // Transfer-side: called from the transfer thread, safe beside engine-thread ops on other blocks.
  virtual uint64_t checksum(const ChecksumArgs& args) const = 0;

  // Level 1: defaults in device/ops.cc.
  virtual void add_rms_norm(const AddRmsNormArgs& args);
  virtual void qkv_rope_store(const QkvRopeStoreArgs& args);
  // 0: the backend has no use for a table, and rope_table does nothing.
  virtual int64_t rope_table_bytes(int64_t, int /*head_dim*/) const { return 0; }
  virtual void rope_table(const RopeTableArgs&) {}
  // linear, then qkv_rope_store of its output. REQUIRES: linear.out is rope.qkv. k and v in it hold nothing afterwards.
  virtual void linear_rope_store(const LinearArgs& linear, const QkvRopeStoreArgs& rope);
  // qkv_rope_store, then paged_attention_decode of the same rows. REQUIRES: attention.q is the first columns of
  // rope.qkv; all rows of the step are decode rows. q, k and v in rope.qkv hold nothing afterwards.
  virtual void rope_store_decode(const QkvRopeStoreArgs& rope, const AttentionArgs& attention);
  virtual void gated_mlp(const GatedMlpArgs& args);
};

}  // namespace rtp_llm
