// Level 1: each op composed of level 0. A backend overrides what it does better, with the same bits.
#include "device/ops.h"

namespace rtp_llm {

void Ops::add_rms_norm(const AddRmsNormArgs& args) {
  check(!args.out.quantized(), "add_rms_norm: this backend writes no quantized output");
  if (!args.delta.empty()) add(args.x, args.delta);
  rms_norm({.x = args.x, .weight = args.weight, .epsilon = args.epsilon, .out = args.out.data});
}

bool LinearPacker::fill_rows(int part, int64_t first_row, int64_t rows, int64_t row_elements, DType dtype,
                             const Fill& fill) {
  thread_local std::vector<uint8_t> memory;
  memory.resize(static_cast<size_t>(rows * row_elements * size_of(dtype)));
  if (!fill(memory.data())) return false;
  write_rows(part, first_row, make_tensor(memory.data(), dtype, {rows, row_elements}));
  return true;
}

void Ops::qkv_rope_store(const QkvRopeStoreArgs& args) {
  const int64_t q_width = int64_t{args.num_heads} * args.head_dim;
  const int64_t kv_width = int64_t{args.num_kv_heads} * args.head_dim;
  check(args.qkv.ndim == 2 && args.qkv.shape[1] == q_width + 2 * kv_width, "qkv_rope_store: qkv must be [M, ",
        q_width + 2 * kv_width, "], got width ", args.qkv.shape[args.qkv.ndim > 0 ? args.qkv.ndim - 1 : 0]);
  const Tensor q = args.qkv.columns(0, q_width).heads(args.num_heads, args.head_dim);
  const Tensor k = args.qkv.columns(q_width, kv_width).heads(args.num_kv_heads, args.head_dim);
  const Tensor v = args.qkv.columns(q_width + kv_width, kv_width).heads(args.num_kv_heads, args.head_dim);
  const auto norm = [&](const Tensor& x, const Tensor& weight) {
    if (!weight.empty()) rms_norm({.x = x, .weight = weight, .epsilon = args.norm_epsilon, .out = x});
  };
  norm(q, args.q_norm);
  norm(k, args.k_norm);
  rope({.x = q, .inv_freq = args.inv_freq, .step = args.step});
  rope({.x = k, .inv_freq = args.inv_freq, .step = args.step});
  store_kv({.k = k, .v = v, .kv = args.kv, .step = args.step});
}

void Ops::linear_rope_store(const LinearArgs& product, const QkvRopeStoreArgs& rope) {
  linear(product);
  qkv_rope_store(rope);
}

void Ops::rope_store_decode(const QkvRopeStoreArgs& rope, const AttentionArgs& attention) {
  qkv_rope_store(rope);
  paged_attention_decode(attention);
}

void Ops::gated_mlp(const GatedMlpArgs& args) {
  linear({.x = args.x, .weight = args.gate_up, .out = args.gate_up_out});
  gated_activation({.gate_up = args.gate_up_out, .activation = args.activation, .out = args.activated});
  linear({.x = args.activated, .weight = args.down, .out = args.out, .residual = args.residual});
}

}  // namespace rtp_llm
