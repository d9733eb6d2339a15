#include "device/numerics_digest.h"

#include <algorithm>
#include <vector>

#include "device/checksum.h"
#include "device/ops.h"
#include "device/philox.h"
#include "device/rope.h"
#include "device/step_inputs.h"

namespace rtp_llm {
namespace {

constexpr int kRows = 7, kHeads = 4, kKvHeads = 2, kHeadDim = 32, kVocab = 203;
constexpr int kHidden = kHeads * kHeadDim, kInter = 288, kBlockTokens = 16, kPositions = 600;
constexpr int kBlocks = (kPositions + kBlockTokens - 1) / kBlockTokens;
constexpr float kScale = 0.17f;

// Small tensors in device memory that live as long as the probe; floats are uniform in (-1, 1) by Philox.
class Probe {
 public:
  explicit Probe(Device& device) : device_(device) {}

  Device& device() { return device_; }
  Ops& ops() { return device_.ops(); }

  Tensor floats(std::initializer_list<int64_t> shape, uint32_t stream, DType dtype = DType::kF32) {
    const Tensor x = empty(dtype, shape);
    const std::vector<float> values = host_floats(x.numel(), stream);
    if (dtype == DType::kF32) {
      device_.copy(x.data, values.data(), x.numel() * size_of(dtype));
    } else {
      std::vector<BFloat16> rounded(values.size());
      std::ranges::transform(values, rounded.begin(), [](float value) { return to_bf16(value); });
      device_.copy(x.data, rounded.data(), x.numel() * size_of(dtype));
    }
    return x;
  }
  Tensor empty(DType dtype, std::initializer_list<int64_t> shape) {
    Tensor x = make_tensor(nullptr, dtype, shape);
    x.data = storage_.emplace_back(device_.allocate(x.numel() * size_of(dtype) + 64, "numerics_probe")).data();
    return x;
  }
  std::unique_ptr<PackedLinear> weight(DType dtype, int64_t rows, int64_t features, uint32_t stream, bool gated = false,
                                       bool row_parallel = false) {
    LinearSpec spec{.name = "numerics_probe",
                    .in_features = features,
                    .parts = {{"weight", rows}},
                    .bias = true,
                    .dtype = dtype,
                    .gather = true,
                    .gated = gated,
                    .row_parallel = row_parallel};
    if (gated) spec.parts = {{"gate", rows / 2}, {"up", rows / 2}};
    auto packer = ops().pack(spec);
    std::vector<float> values = host_floats(rows * features, stream), bias = host_floats(rows, stream + 1);
    int64_t first = 0;
    for (size_t part = 0; part < spec.parts.size(); ++part) {
      const int64_t count = spec.parts[part].rows;
      packer->write_rows(static_cast<int>(part), 0,
                         make_tensor(values.data() + first * features, DType::kF32, {count, features}));
      packer->write_bias(static_cast<int>(part), make_tensor(bias.data() + first, DType::kF32, {count}));
      first += count;
    }
    return packer->finish();
  }

  // Folds the bits of an output.
  void add(const Tensor& x) {
    std::vector<uint8_t> bytes(static_cast<size_t>(x.numel() * size_of(x.dtype)));
    device_.synchronize();
    device_.copy(bytes.data(), x.data, static_cast<int64_t>(bytes.size()));
    for (uint8_t byte : bytes) digest_ = mix64(digest_ + byte + 1);
  }
  void add(uint64_t word) { digest_ = mix64(digest_ + word); }
  uint64_t digest() const { return digest_; }

 private:
  static std::vector<float> host_floats(int64_t count, uint32_t stream) {
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = uniform_from_bits(philox4x32({static_cast<uint32_t>(i), stream, 0, 0}, 1, 0)[0]) * 2.0f - 1.0f;
    return values;
  }

  Device& device_;
  std::vector<Buffer> storage_;
  uint64_t digest_ = 0;
};

int32_t block_at(int index) { return kBlocks - 1 - index; }

// One sequence of kPositions stored positions in blocks laid out backwards, in slot 0 of 2.
struct ProbeSequence {
  ProbeSequence(Probe& probe, DType kv_dtype)
      : slots{.last_token = probe.empty(DType::kI32, {2}),
              .seq_len = probe.empty(DType::kI32, {2}),
              .output_position = probe.empty(DType::kI32, {2}),
              .block_tables = probe.empty(DType::kI32, {2, kBlocks}),
              .sampling = static_cast<SamplingState*>(
                  probe.empty(DType::kU8, {2 * static_cast<int64_t>(sizeof(SamplingState))}).data)},
        inputs(probe.device(), {.rows = kPositions, .segments = 2, .block_ids = kBlocks}, slots) {
    const int64_t vector = kHeadDim * size_of(kv_dtype), head = kBlockTokens * vector;
    kv = {.base = probe.empty(DType::kU8, {kBlocks, 2 * kKvHeads * head}).as<uint8_t>(),
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

  // A step of the rows from `position` on, the last one sampled; the slot is as before them.
  const StepRows& step(Probe& probe, int position, const std::vector<int32_t>& tokens, Form form) {
    probe.device().synchronize();  // the inputs of the step before are read no more
    inputs.clear();
    inputs.add(0, tokens, form, position);
    inputs.sample();
    SlotUpdate& update = inputs.update(0);
    update.binds = 1;
    update.seq_len = position;
    update.sampling = {.temperature = 0.7f, .top_p = 0.9f, .top_k = 50, .seed = 7, .num_logprobs = 0};
    for (int i = 0; i < kBlocks; ++i) inputs.add_block(block_at(i));
    inputs.upload();
    inputs.apply(kv.base, kv.block_stride);
    return inputs.rows();
  }

  Slots slots;
  StepInputs inputs;
  KvView kv;
};

void add_linear(Probe& probe, DType dtype) {
  Ops& ops = probe.ops();
  const auto [stream, input, _] = ops.activation_types(dtype);
  const auto gate_up = probe.weight(dtype, 2 * kInter, kHidden, 10, true);
  const auto down = probe.weight(dtype, kHidden, kInter, 12, false, true);
  const Tensor out = probe.empty(stream, {kRows, kHidden});
  ops.gated_mlp({.x = probe.floats({kRows, kHidden}, 14, input),
                 .gate_up = gate_up.get(),
                 .down = down.get(),
                 .gate_up_out = probe.empty(stream, {kRows, 2 * kInter}),
                 .activated = probe.empty(input, {kRows, kInter}),
                 .residual = probe.floats({kRows, kHidden}, 15, stream),
                 .out = out});
  probe.add(out);
  const Tensor sums = probe.empty(DType::kF32, {kRows, kHidden});  // not rounded: tells apart trees over K
  ops.linear({.x = probe.floats({kRows, kInter}, 17, input), .weight = down.get(), .out = sums});
  probe.add(sums);
  for (Activation activation : {Activation::kGelu, Activation::kGeluTanh}) {
    const Tensor activated = probe.empty(input, {kRows, kInter});
    ops.gated_activation(
        {.gate_up = probe.floats({kRows, 2 * kInter}, 16, stream), .activation = activation, .out = activated});
    probe.add(activated);
  }
}

void add_norms(Probe& probe, DType dtype) {
  Ops& ops = probe.ops();
  const NormArgs args{.x = probe.floats({kRows, kHidden}, 20, ops.activation_types(dtype).stream),
                      .weight = probe.floats({kHidden}, 21),
                      .bias = {},
                      .epsilon = 1e-6f,
                      .out = probe.empty(ops.activation_types(dtype).input, {kRows, kHidden})};
  ops.rms_norm(args);
  probe.add(args.out);
  ops.layer_norm(args);
  probe.add(args.out);
}

// [rows, heads, head_dim] of q, from row `first` on.
Tensor queries_of(const Tensor& qkv, int first) {
  return qkv.rows(first, qkv.shape[0] - first).columns(0, kHidden).heads(kHeads, kHeadDim);
}

// Stores kPositions positions and attends from all of them, then once more from the last as a decode row, with room to
// split it.
void add_attention(Probe& probe, DType dtype, ProbeSequence& sequence) {
  Ops& ops = probe.ops();
  const std::vector<float> table = rope_table(kHeadDim, 10000.0);
  const Tensor inv_freq = probe.empty(DType::kF32, {kHeadDim / 2});
  probe.device().copy(inv_freq.data, table.data(), inv_freq.numel() * 4);
  const Tensor qkv =
      probe.floats({kPositions, (kHeads + 2 * kKvHeads) * kHeadDim}, 30, ops.activation_types(dtype).qkv);
  const StepRows& all = sequence.step(probe, 0, std::vector<int32_t>(kPositions), Form::kPrefill);
  ops.qkv_rope_store({.qkv = qkv,
                      .num_heads = kHeads,
                      .num_kv_heads = kKvHeads,
                      .head_dim = kHeadDim,
                      .q_norm = probe.floats({kHeadDim}, 31),
                      .k_norm = probe.floats({kHeadDim}, 32),
                      .inv_freq = inv_freq,
                      .kv = sequence.kv,
                      .step = &all});
  const Tensor out = probe.empty(ops.activation_types(dtype).input, {kPositions, kHidden});
  const Tensor workspace =
      probe.empty(DType::kU8, {ops.attention_workspace_bytes(kPositions, kHeads, kKvHeads, kHeadDim, kPositions)});
  ops.paged_attention_prefill(
      {.q = queries_of(qkv, 0), .kv = sequence.kv, .step = &all, .scale = kScale, .out = out, .workspace = workspace});
  probe.add(out);
  const StepRows& last = sequence.step(probe, kPositions - 1, {0}, Form::kDecode);
  ops.paged_attention_decode({.q = queries_of(qkv, kPositions - 1),
                              .kv = sequence.kv,
                              .step = &last,
                              .scale = kScale,
                              .out = out.rows(0, 1),
                              .workspace = workspace});
  probe.add(out.rows(0, 1));
  for (int block = 0; block < kBlocks; ++block)
    probe.add(ops.checksum({.kv = sequence.kv,
                            .block = block_at(block),
                            .first_position = int64_t{block} * kBlockTokens,
                            .tokens = kBlockTokens}));
}

void add_sample(Probe& probe, DType dtype, ProbeSequence& sequence) {
  Ops& ops = probe.ops();
  const auto table = probe.weight(dtype, kVocab, kHidden, 40);
  const Tensor hidden = probe.empty(ops.activation_types(dtype).stream, {1, kHidden});
  const Tensor normed = probe.empty(ops.activation_types(dtype).input, {1, kHidden});
  const Tensor norm = probe.floats({kHidden}, 42);
  const Tensor tokens = probe.empty(DType::kI32, {1}), logprobs = probe.empty(DType::kF32, {1});
  const Tensor logits = probe.empty(DType::kF32, {1, kVocab});
  const Tensor workspace = probe.empty(DType::kU8, {ops.sample_workspace_bytes(1, kVocab)});
  const Tensor top_tokens = probe.empty(DType::kI32, {1, kMaxLogprobs});
  const Tensor top_logprobs = probe.empty(DType::kF32, {1, kMaxLogprobs});
  const StepRows& step = sequence.step(probe, 0, {kTokenFromSlot}, Form::kDecode);
  for (int i = 0; i < 16; ++i) {
    ops.embedding({.tokens = sequence.inputs.tokens(), .table = table.get(), .step = &step, .out = hidden});
    ops.rms_norm({.x = hidden, .weight = norm, .out = normed});
    ops.linear({.x = normed, .weight = table.get(), .out = logits});
    ops.sample({.logits = logits,
                .step = &step,
                .tokens = tokens,
                .logprobs = logprobs,
                .top_tokens = top_tokens,
                .top_logprobs = top_logprobs,
                .workspace = workspace});
    probe.add(tokens);
    probe.add(logprobs);
  }
}

}  // namespace

uint64_t numerics_digest(Device& device, DType weight_dtype, DType kv_dtype) {
  Probe probe(device);
  ProbeSequence sequence(probe, kv_dtype);
  add_linear(probe, weight_dtype);
  add_norms(probe, weight_dtype);
  add_attention(probe, weight_dtype, sequence);
  add_sample(probe, weight_dtype, sequence);
  device.synchronize();
  return probe.digest();
}

}  // namespace rtp_llm
