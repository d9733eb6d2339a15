// Attention and qkv_rope_store: from ops' arguments to the kernels' problems.
#include "device/cuda/attention.h"

#include <algorithm>

#include "device/cuda/attention_shapes.h"
#include "device/cuda/cuda_ops.h"
#include "device/cuda/qkv_rope_store.h"

namespace rtp_llm::cuda {
namespace {

AttentionProblem problem_of(const char* op, const AttentionArgs& args) {
  check(args.q.ndim == 3 && args.q.dtype == DType::kBF16 && args.out.dtype == DType::kBF16, op,
        ": q must be bfloat16 [M, heads, head_dim], out bfloat16");
  check(args.kv.dtype == DType::kBF16, op, ": KV must be bfloat16, got ", name_of(args.kv.dtype));
  check(args.q.stride[1] == args.q.shape[2] && args.q.stride[2] == 1, op, ": a row of q must be contiguous");
  const Slots& slots = *args.step->slots;
  return {.q = args.q.as<const __nv_bfloat16>(),
          .q_stride = args.q.stride[0],
          .out = args.out.as<__nv_bfloat16>(),
          .out_stride = args.out.stride[0],
          .num_rows = static_cast<int>(args.q.shape[0]),
          .num_heads = static_cast<int>(args.q.shape[1]),
          .scale = args.scale,
          .kv = args.kv,
          .seq_len = slots.seq_len.as<const int32_t>(),
          .block_tables = slots.block_tables.as<const int32_t>(),
          .block_table_stride = slots.block_tables.stride[0],
          .rope = {}};
}

// The rows from the first of `segments` to the end of the last. REQUIRES: none of another form lies between.
DecodeRows rows_of(const char* op, const StepRows& step, std::span<const Segment> segments) {
  const Segment& last = segments.back();
  DecodeRows rows{.first_row = segments.front().first_row,
                  .rows = last.first_row + last.rows - segments.front().first_row,
                  .row_slot = step.row_slot.as<const int32_t>(),
                  .row_offset = step.row_offset.as<const int32_t>()};
  int covered = 0;
  for (const Segment& segment : segments) covered += segment.rows;
  check(covered == rows.rows, op, ": ", covered, " of ", rows.rows, " rows are of its form");
  return rows;
}

void check_qkv(const char* op, const QkvRopeStoreArgs& args) {
  const int64_t width = (int64_t{args.num_heads} + 2 * args.num_kv_heads) * args.head_dim;
  check(args.qkv.ndim == 2 && args.qkv.shape[1] == width && args.qkv.dtype == DType::kBF16, op,
        ": qkv must be bfloat16 [M, ", width, "]");
  check(args.q_norm.empty() == args.k_norm.empty(), op, ": q_norm and k_norm come together or not at all");
}

// Steps of fewer rows have no table: it takes a launch.
constexpr int64_t kFewestTableRows = 256;

bool has_table(int64_t rows, int head_dim, const Tensor& inv_freq) {
  return rows >= kFewestTableRows && has_tiles(head_dim) && 2 * inv_freq.numel() == head_dim;
}

}  // namespace

RopeStoreProblem rope_store_of(const char* op, const QkvRopeStoreArgs& args) {
  const StepRows& step = *args.step;
  check_qkv(op, args);
  const int64_t rows = args.qkv.shape[0];
  return {.qkv = args.qkv.as<__nv_bfloat16>(),
          .stride = args.qkv.stride[0],
          .num_rows = static_cast<int>(rows),
          .num_heads = args.num_heads,
          .q_norm = args.q_norm.as<const float>(),
          .k_norm = args.k_norm.as<const float>(),
          .norm_epsilon = args.norm_epsilon,
          .inv_freq = args.inv_freq.as<const float>(),
          .rotary_half = static_cast<int>(args.inv_freq.numel()),
          .kv = args.kv,
          .row_slot = step.row_slot.as<const int32_t>(),
          .row_offset = step.row_offset.as<const int32_t>(),
          .seq_len = step.slots->seq_len.as<const int32_t>(),
          .block_tables = step.slots->block_tables.as<const int32_t>(),
          .block_table_stride = step.slots->block_tables.stride[0],
          .table = !args.table.empty() && has_table(rows, args.head_dim, args.inv_freq)
                       ? rope_table_in(args.table.data, rows)
                       : RopeTable{}};
}

void CudaOps::paged_attention_decode(const AttentionArgs& args) { decode(args, {}); }

void CudaOps::decode(const AttentionArgs& args, const QkvRope& rope) {
  AttentionProblem problem = problem_of("paged_attention_decode", args);
  problem.rope = rope;
  const DecodeRows rows = rows_of("paged_attention_decode", *args.step, args.step->decodes);
  const int64_t positions = args.step->slots->block_tables.shape[1] * args.kv.block_tokens;
  attention_.decode(stream(), problem, rows, args.workspace.data, args.workspace.numel(), positions);
}

void CudaOps::paged_attention_prefill(const AttentionArgs& args) {
  const AttentionProblem problem = problem_of("paged_attention_prefill", args);
  const StepRows& step = *args.step;
  attention_.prefill(stream(), problem,
                     {.segments = step.device_prefills,
                      .count = &step.device_counts->prefills,
                      .max_count = static_cast<int>(step.prefills.size()),
                      .rows = rows_of("paged_attention_prefill", step, step.prefills)});
}

int64_t CudaOps::attention_workspace_bytes(int64_t, int num_heads, int num_kv_heads, int head_dim,
                                           int64_t max_positions) const {
  return attention_.workspace_bytes(num_heads, num_kv_heads, head_dim, max_positions);
}

void CudaOps::qkv_rope_store(const QkvRopeStoreArgs& args) {
  cuda::qkv_rope_store(stream(), rope_store_of("qkv_rope_store", args));
}

int64_t CudaOps::rope_table_bytes(int64_t max_rows, int head_dim) const {
  return has_tiles(head_dim) ? cuda::rope_table_bytes(max_rows, head_dim) : 0;
}

void CudaOps::rope_table(const RopeTableArgs& args) {
  const StepRows& step = *args.step;
  if (!has_table(step.num_rows, args.kv.head_dim, args.inv_freq)) return;
  check(args.table.numel() >= rope_table_bytes(step.num_rows, args.kv.head_dim), "rope_table: ", args.table.numel(),
        " bytes for ", step.num_rows, " rows");
  make_rope_table(stream(),
                  {.inv_freq = args.inv_freq.as<const float>(),
                   .kv = args.kv,
                   .num_rows = static_cast<int>(step.num_rows),
                   .row_slot = step.row_slot.as<const int32_t>(),
                   .row_offset = step.row_offset.as<const int32_t>(),
                   .seq_len = step.slots->seq_len.as<const int32_t>(),
                   .block_tables = step.slots->block_tables.as<const int32_t>(),
                   .block_table_stride = step.slots->block_tables.stride[0]},
                  args.table.data);
}

// In one kernel where a row sees no position of the step but its own, which no other CTA makes.
void CudaOps::rope_store_decode(const QkvRopeStoreArgs& rope, const AttentionArgs& attention) {
  const bool lone_rows = std::ranges::all_of(attention.step->decodes, [](const Segment& run) { return run.rows == 1; });
  const bool wide = has_tiles(rope.head_dim) && 2 * rope.inv_freq.numel() == rope.head_dim &&
                    rope.qkv.stride[0] % 8 == 0 && rope.kv.token_stride % 16 == 0;
  const bool faster = attention_.decode_ropes(static_cast<int>(rope.qkv.shape[0]), rope.num_heads, rope.num_kv_heads);
  if (!lone_rows || !wide || !faster) return Ops::rope_store_decode(rope, attention);
  check_qkv("rope_store_decode", rope);
  check(attention.q.data == rope.qkv.data && attention.q.stride[0] == rope.qkv.stride[0] &&
            attention.q.shape[1] == rope.num_heads,
        "rope_store_decode: q must be the first columns of qkv");
  decode(attention, {.inv_freq = rope.inv_freq.as<const float>(),
                     .q_norm = rope.q_norm.as<const float>(),
                     .k_norm = rope.k_norm.as<const float>(),
                     .norm_epsilon = rope.norm_epsilon});
}

}  // namespace rtp_llm::cuda
