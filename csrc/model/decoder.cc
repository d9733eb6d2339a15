#include "model/decoder.h"

#include <cmath>

#include "tensor/check.h"

namespace rtp_llm {

// Everything that a step writes besides KV and slots. Sized once; a step uses the first rows.
struct Decoder::Activations {
  int64_t max_rows = 0, max_logit_rows = 0, max_positions = 0;
  Tensor stream;     // [rows, hidden]: the residual stream
  Tensor normed;     // [rows, hidden]
  Tensor qkv;        // [rows, (heads + 2 kv_heads) * head_dim]
  Tensor attended;   // [rows, heads * head_dim]
  Tensor gate_up;    // [rows, 2 * intermediate]
  Tensor activated;  // [rows, intermediate]
  Tensor last;       // [logit rows, hidden]: rows of the stream whose logits are wanted
  Tensor logits;     // [logit rows, vocab] f32
  Tensor attention_workspace;
  Tensor rope_table;
  std::vector<Buffer> buffers;

  Tensor take(Device& device, const char* tag, DType dtype, int64_t rows, int64_t columns) {
    buffers.push_back(device.allocate(rows * columns * size_of(dtype), tag));
    return make_tensor(buffers.back().data(), dtype, {rows, columns});
  }
};

Decoder::Decoder(Device& device, const Weights& weights) : device_(device), weights_(weights) {
  check(weights.finished(), "a decoder needs finished weights");
}

Decoder::~Decoder() = default;

const ModelConfig& Decoder::config() const { return weights_.config(); }

const std::string& Decoder::model_digest() const { return weights_.digest(); }

KvLayout Decoder::kv_layout(DType kv_dtype, int block_tokens) const {
  return KvLayout::transformer(config().num_hidden_layers, config().num_key_value_heads, config().head_dim, kv_dtype,
                               block_tokens);
}

void Decoder::allocate(int64_t max_rows, int64_t max_logit_rows, int64_t max_positions) {
  check(max_rows > 0, "max_rows must be positive, got ", max_rows);
  check(max_logit_rows > 0, "max_logit_rows must be positive, got ", max_logit_rows);
  check(max_positions > 0 && max_positions <= config().max_position_embeddings, "max_positions must be from 1 to ",
        config().max_position_embeddings, ", got ", max_positions);
  const ModelConfig& model = config();
  const ActivationTypes types = device_.ops().activation_types(model.dtype);
  const int64_t q_width = int64_t{model.num_attention_heads} * model.head_dim;
  const int64_t kv_width = int64_t{model.num_key_value_heads} * model.head_dim;
  activations_.reset();  // the old ones go first: both may not fit
  auto made = std::make_unique<Activations>();
  made->max_rows = max_rows;
  made->max_logit_rows = max_logit_rows;
  made->max_positions = max_positions;
  made->stream = made->take(device_, "activations.stream", types.stream, max_rows, model.hidden_size);
  made->normed =
      made->take(device_, "activations.normed", types.input, std::max(max_rows, max_logit_rows), model.hidden_size);
  made->qkv = made->take(device_, "activations.qkv", types.qkv, max_rows, q_width + 2 * kv_width);
  made->attended = made->take(device_, "activations.attended", types.input, max_rows, q_width);
  made->gate_up = made->take(device_, "activations.gate_up", types.stream, max_rows, 2 * model.intermediate_size);
  made->activated = made->take(device_, "activations.activated", types.input, max_rows, model.intermediate_size);
  made->last = made->take(device_, "activations.last", types.stream, max_logit_rows, model.hidden_size);
  made->logits = made->take(device_, "activations.logits", DType::kF32, max_logit_rows, model.vocab_size);
  const int64_t workspace = device_.ops().attention_workspace_bytes(
      max_rows, model.num_attention_heads, model.num_key_value_heads, model.head_dim, max_positions);
  made->attention_workspace =
      made->take(device_, "activations.attention_workspace", DType::kU8, 1, std::max<int64_t>(workspace, 1));
  const int64_t table = device_.ops().rope_table_bytes(max_rows, model.head_dim);
  if (table > 0) made->rope_table = made->take(device_, "activations.rope_table", DType::kU8, 1, table);
  activations_ = std::move(made);
}

Tensor Decoder::forward(const StepInput& input, const KvLayout& layout, void* kv_pool, int64_t num_blocks,
                        int layers_per_message, const std::function<void(int, int)>& on_layers) {
  check_step(input, layers_per_message);
  Ops& ops = device_.ops();
  const ModelConfig& model = config();
  Activations& step = *activations_;
  const int64_t rows = input.tokens.shape[0];
  const Tensor stream = step.stream.rows(0, rows), normed = step.normed.rows(0, rows), qkv = step.qkv.rows(0, rows);
  const Tensor attended = step.attended.rows(0, rows);

  ops.embedding({.tokens = input.tokens, .table = &weights_.embedding(), .step = input.rows, .out = stream});
  // Attention of decode rows alone may norm and rotate itself.
  const bool decodes_alone = !on_layers && input.rows->prefills.empty();
  if (!decodes_alone)
    ops.rope_table({.inv_freq = weights_.inv_freq(),
                    .kv = view_of_layer(layout.groups[0], kv_pool, num_blocks, 0),
                    .step = input.rows,
                    .table = step.rope_table});

  int first_of_group = 0;
  for (int layer = 0; layer < model.num_hidden_layers; ++layer) {
    const LayerWeights& weights = weights_.layers()[layer];
    const KvView kv = view_of_layer(layout.groups[0], kv_pool, num_blocks, layer);

    ops.add_rms_norm({.x = stream, .weight = weights.input_norm, .epsilon = model.rms_norm_eps, .out = normed});
    const LinearArgs product{.x = normed, .weight = weights.qkv.get(), .out = qkv};
    const QkvRopeStoreArgs rope{.qkv = qkv,
                                .num_heads = model.num_attention_heads,
                                .num_kv_heads = model.num_key_value_heads,
                                .head_dim = model.head_dim,
                                .q_norm = weights.q_norm,
                                .k_norm = weights.k_norm,
                                .norm_epsilon = model.rms_norm_eps,
                                .inv_freq = weights_.inv_freq(),
                                .kv = kv,
                                .step = input.rows,
                                .table = decodes_alone ? Tensor{} : step.rope_table};
    const AttentionArgs attention = attention_of(qkv, kv, *input.rows, attended);
    if (decodes_alone) {
      ops.linear(product);
      ops.rope_store_decode(rope, attention);
    } else {
      ops.linear_rope_store(product, rope);
      const int stored = layer + 1 - first_of_group;
      if (on_layers && (stored == layers_per_message || layer + 1 == model.num_hidden_layers)) {
        on_layers(first_of_group, stored);
        first_of_group = layer + 1;
      }
      if (!input.rows->prefills.empty()) ops.paged_attention_prefill(attention);
      if (!input.rows->decodes.empty()) ops.paged_attention_decode(attention);
    }
    ops.linear({.x = attended, .weight = weights.o.get(), .out = stream, .residual = stream});

    ops.add_rms_norm(
        {.x = stream, .weight = weights.post_attention_norm, .epsilon = model.rms_norm_eps, .out = normed});
    ops.gated_mlp({.x = normed,
                   .gate_up = weights.gate_up.get(),
                   .down = weights.down.get(),
                   .activation = model.hidden_act,
                   .gate_up_out = step.gate_up.rows(0, rows),
                   .activated = step.activated.rows(0, rows),
                   .residual = stream,
                   .out = stream});
  }

  const Tensor logits = compute_logits(input.logit_rows, stream);
  ops.advance({.step = input.rows});
  return logits;
}

AttentionArgs Decoder::attention_of(const Tensor& qkv, const KvView& kv, const StepRows& rows, const Tensor& out) {
  const int64_t heads = config().num_attention_heads, head_dim = config().head_dim;
  return {.q = qkv.columns(0, heads * head_dim).heads(heads, head_dim),
          .kv = kv,
          .step = &rows,
          .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim))),
          .out = out,
          .workspace = activations_->attention_workspace};
}

Tensor Decoder::compute_logits(const Tensor& logit_rows, const Tensor& stream) {
  Ops& ops = device_.ops();
  const int64_t count = logit_rows.empty() ? 0 : logit_rows.shape[0];
  const Tensor logits = activations_->logits.rows(0, count);
  if (count == 0) return logits;
  const Tensor last = activations_->last.rows(0, count), normed = activations_->normed.rows(0, count);
  ops.gather_rows({.x = stream, .rows = logit_rows, .out = last});
  ops.add_rms_norm({.x = last, .weight = weights_.final_norm(), .epsilon = config().rms_norm_eps, .out = normed});
  ops.linear({.x = normed, .weight = &weights_.lm_head(), .out = logits});
  return logits;
}

void Decoder::check_step(const StepInput& input, int layers_per_message) const {
  check(activations_ != nullptr, "forward before allocate");
  check(layers_per_message > 0, "layers_per_message must be positive, got ", layers_per_message);
  const int64_t rows = input.tokens.ndim == 1 ? input.tokens.shape[0] : 0;
  check(rows > 0 && rows <= activations_->max_rows, "a step of ", rows, " rows, allocated are ",
        activations_->max_rows);
  const int64_t logit_rows = input.logit_rows.empty() ? 0 : input.logit_rows.shape[0];
  check(logit_rows <= activations_->max_logit_rows, "a step of ", logit_rows, " logit rows, allocated are ",
        activations_->max_logit_rows);
  check(input.rows != nullptr && input.rows->num_rows == rows, "StepRows of ",
        input.rows == nullptr ? 0 : input.rows->num_rows, " rows for ", rows, " tokens");
  check(input.rows->max_position < activations_->max_positions, "a step with position ", input.rows->max_position,
        ", allocated are ", activations_->max_positions);
  int64_t covered = 0;
  for (const Segment& segment : input.rows->segments) {
    check(segment.first_row == covered && segment.rows > 0, "segment of slot ", segment.slot, " has rows [",
          segment.first_row, ", ", segment.first_row + segment.rows, "), the next row is ", covered);
    covered += segment.rows;
  }
  check(covered == rows, "segments cover ", covered, " of ", rows, " rows");
}

}  // namespace rtp_llm
