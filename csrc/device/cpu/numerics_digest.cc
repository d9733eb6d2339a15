// numerics_digest: every op on fixed inputs, its output bits folded into 64. Two engines whose digests
// differ compute differently somewhere, whatever their names say.
#include <algorithm>
#include <vector>

#include "device/checksum.h"
#include "device/cpu/cpu_ops.h"
#include "device/philox.h"
#include "device/rope.h"

namespace rtp_llm::cpu {
namespace {

constexpr int kRows = 7, kHeads = 4, kKvHeads = 2, kHeadDim = 32, kVocab = 203;
constexpr int kHidden = kHeads * kHeadDim, kInter = 96, kBlockTokens = 16, kPositions = 600;
constexpr int kBlocks = (kPositions + kBlockTokens - 1) / kBlockTokens;

class Digest {
 public:
  void add(const Tensor& x) {
    const auto* bytes = x.as<const uint8_t>();
    const int64_t count = x.numel() * size_of(x.dtype);
    for (int64_t i = 0; i < count; ++i) value_ = mix64(value_ + bytes[i] + 1);
  }
  void add(uint64_t word) { value_ = mix64(value_ + word); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0;
};

// Small tensors that live as long as the probe; floats are uniform in (-1, 1) by Philox.
class Probe {
 public:
  Tensor floats(std::initializer_list<int64_t> shape, uint32_t stream) {
    Tensor x = empty(DType::kF32, shape);
    for (int64_t i = 0; i < x.numel(); ++i)
      x.as<float>()[i] = uniform_from_bits(philox4x32({static_cast<uint32_t>(i), stream, 0, 0}, 1, 0)[0]) * 2.0f - 1.0f;
    return x;
  }
  Tensor empty(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor x = make_tensor(nullptr, dtype, shape);
    storage_.emplace_back(static_cast<size_t>(x.numel() * size_of(dtype)) + 64);
    x.data = storage_.back().data();
    return x;
  }

 private:
  std::vector<std::vector<uint8_t>> storage_;
};

std::unique_ptr<PackedLinear> probe_weight(Ops& ops, Probe& probe, DType dtype, int64_t rows, int64_t features,
                                           uint32_t stream) {
  auto packer = ops.pack({.name = "numerics_probe",
                          .in_features = features,
                          .parts = {{"weight", rows}},
                          .bias = true,
                          .dtype = dtype,
                          .gather = true});
  packer->write_rows(0, 0, probe.floats({rows, features}, stream));
  packer->write_bias(0, probe.floats({rows}, stream + 1));
  return packer->finish();
}

// One sequence of kPositions stored positions in blocks laid out backwards.
struct ProbeSequence {
  ProbeSequence(Probe& probe, DType kv_dtype) {
    slots.last_token = probe.empty(DType::kI32, {1});
    slots.seq_len = probe.empty(DType::kI32, {1});
    slots.output_position = probe.empty(DType::kI32, {1});
    slots.block_tables = probe.empty(DType::kI32, {1, kBlocks});
    for (int i = 0; i < kBlocks; ++i) slots.block_tables.as<int32_t>()[i] = kBlocks - 1 - i;
    slots.sampling = &sampling;
    const int64_t vector = kHeadDim * size_of(kv_dtype), head = kBlockTokens * vector;
    const Tensor pool = probe.empty(DType::kU8, {kBlocks, 2 * kKvHeads * head});
    kv = {.base = pool.as<uint8_t>(),
          .block_stride = 2 * kKvHeads * head,
          .plane_offset = {0, kKvHeads * head},
          .head_stride = head,
          .token_stride = vector,
          .num_heads = kKvHeads,
          .head_dim = kHeadDim,
          .block_tokens = kBlockTokens,
          .num_blocks = kBlocks,
          .dtype = kv_dtype};
  }
  Slots slots;
  SamplingState sampling{.temperature = 0.7f, .top_p = 0.9f, .top_k = 50, .seed = 7, .num_logprobs = 0};
  KvView kv;
};

void add_linear(Ops& ops, Probe& probe, DType dtype, Digest& digest) {
  const DType input = ops.activation_types(dtype).input;
  const auto gate_up = probe_weight(ops, probe, dtype, 2 * kInter, kHidden, 10);
  const auto down = probe_weight(ops, probe, dtype, kHidden, kInter, 12);
  const Tensor out = probe.empty(DType::kF32, {kRows, kHidden});
  ops.gated_mlp({.x = probe.floats({kRows, kHidden}, 14),
                 .gate_up = gate_up.get(),
                 .down = down.get(),
                 .gate_up_out = probe.empty(DType::kF32, {kRows, 2 * kInter}),
                 .activated = probe.empty(input, {kRows, kInter}),
                 .residual = probe.floats({kRows, kHidden}, 15),
                 .out = out});
  digest.add(out);
  for (Activation activation : {Activation::kGelu, Activation::kGeluTanh}) {
    const Tensor activated = probe.empty(input, {kRows, kInter});
    ops.gated_activation(
        {.gate_up = probe.floats({kRows, 2 * kInter}, 16), .activation = activation, .out = activated});
    digest.add(activated);
  }
}

void add_norms(Ops& ops, Probe& probe, DType dtype, Digest& digest) {
  const NormArgs args{.x = probe.floats({kRows, kHidden}, 20),
                      .weight = probe.floats({kHidden}, 21),
                      .bias = {},
                      .epsilon = 1e-6f,
                      .out = probe.empty(ops.activation_types(dtype).input, {kRows, kHidden})};
  ops.rms_norm(args);
  digest.add(args.out);
  ops.layer_norm(args);
  digest.add(args.out);
}

// Stores kPositions positions, then attends from the last kRows of them.
void add_attention(Ops& ops, Probe& probe, ProbeSequence& sequence, Digest& digest) {
  const std::vector<float> table = rope_table(kHeadDim, 10000.0);
  const Tensor inv_freq = probe.empty(DType::kF32, {kHeadDim / 2});
  std::copy(table.begin(), table.end(), inv_freq.as<float>());
  const Segment all[] = {{.slot = 0, .first_row = 0, .rows = kPositions}};
  const Tensor qkv = probe.floats({kPositions, (kHeads + 2 * kKvHeads) * kHeadDim}, 30);
  ops.qkv_rope_store({.qkv = qkv,
                      .num_heads = kHeads,
                      .num_kv_heads = kKvHeads,
                      .head_dim = kHeadDim,
                      .q_norm = probe.floats({kHeadDim}, 31),
                      .k_norm = probe.floats({kHeadDim}, 32),
                      .inv_freq = inv_freq,
                      .kv = sequence.kv,
                      .slots = &sequence.slots,
                      .segments = all});
  Tensor q = qkv.columns(0, kHidden);
  q.ndim = 3;
  q.shape = {kPositions, kHeads, kHeadDim};
  q.stride = {qkv.stride[0], kHeadDim, 1};
  const Tensor out = probe.empty(DType::kF32, {kPositions, kHidden});
  ops.paged_attention_prefill(
      {.q = q, .kv = sequence.kv, .slots = &sequence.slots, .segments = all, .scale = 0.17f, .out = out});
  digest.add(out);
  for (int block = 0; block < kBlocks; ++block)
    digest.add(ops.checksum({.kv = sequence.kv,
                             .block = sequence.slots.block_tables.as<int32_t>()[block],
                             .first_position = int64_t{block} * kBlockTokens,
                             .tokens = kBlockTokens}));
}

void add_sample(Ops& ops, Probe& probe, DType dtype, ProbeSequence& sequence, Digest& digest) {
  const auto table = probe_weight(ops, probe, dtype, kVocab, kHidden, 40);
  const Tensor hidden = probe.empty(DType::kF32, {1, kHidden});
  const Tensor tokens = probe.empty(DType::kI32, {1}), logprobs = probe.empty(DType::kF32, {1});
  const Tensor logits = probe.empty(DType::kF32, {1, kVocab});
  const Tensor workspace = probe.empty(DType::kU8, {ops.sample_workspace_bytes(1, kVocab)});
  const SampleRow rows[] = {{.slot = 0, .row = 0}};
  for (int step = 0; step < 16; ++step) {
    ops.embedding({.tokens = sequence.slots.last_token,
                   .table = table.get(),
                   .slots = &sequence.slots,
                   .segments = {},
                   .out = hidden});
    ops.linear({.x = hidden, .weight = table.get(), .out = logits});
    ops.sample({.logits = logits,
                .rows = rows,
                .slots = &sequence.slots,
                .tokens = tokens,
                .logprobs = logprobs,
                .top_tokens = probe.empty(DType::kI32, {1, kMaxLogprobs}),
                .top_logprobs = probe.empty(DType::kF32, {1, kMaxLogprobs}),
                .workspace = workspace});
    digest.add(tokens);
    digest.add(logprobs);
  }
}

}  // namespace

uint64_t CpuOps::numerics_digest(DType weight_dtype, DType kv_dtype) {
  Probe probe;
  Digest digest;
  ProbeSequence sequence(probe, kv_dtype);
  add_linear(*this, probe, weight_dtype, digest);
  add_norms(*this, probe, weight_dtype, digest);
  add_attention(*this, probe, sequence, digest);
  add_sample(*this, probe, weight_dtype, sequence, digest);
  return digest.value();
}

}  // namespace rtp_llm::cpu
