// Decode attention: shapes, schedule, launch.
#include "device/cuda/attention.h"
#include "device/cuda/attention_decode.cuh"
#include "device/cuda/attention_shapes.h"
#include "device/cuda/kv_map.h"
#include "device/cuda/launch.h"

namespace rtp_llm::cuda {
namespace {

int64_t ring_bytes(int head_dim, int slots) { return int64_t{slots} * kSlotPositions * head_dim * 2; }

// Ring, work list, and room to align.
int64_t decode_shared_bytes(int head_dim, int slots, int rows) {
  return ring_bytes(head_dim, slots) + WorkList::bytes(rows) + 1024;
}

// Shares that divide the pairs evenly, or each pair evenly, if there are as many pairs as usual: equal contexts then
// need no cut, or equal ones. At most a tenth of the CTAs that fit is given up for it.
int even_shares(int most, int pairs) {
  for (int shares = most; shares > most - most / 10; --shares)
    if (pairs % shares == 0 || shares % pairs == 0) return shares;
  return most;
}

// One CTA an SM with a long ring while there is little work; two with short rings as soon as that pays. A whole pair a
// share where that leaves no more than a third of the CTAs without one.
DecodeSchedule choose_schedule(int major, int num_sms, int pairs, const DecodeSchedule& wanted) {
  DecodeSchedule schedule = wanted;
  const auto fills = [&](int most) { return pairs <= most && 3 * pairs >= 2 * most; };
  const bool two = pairs >= 48 && !fills(num_sms);
  const int most = two ? 2 * num_sms : num_sms;
  const int most_slots = major >= 9 ? 12 : 5;  // sm_86 and sm_89 have 99 KiB
  if (schedule.shares == 0) schedule.shares = fills(most) ? pairs : even_shares(most, pairs);
  if (schedule.slots == 0) schedule.slots = std::min(most_slots, schedule.shares <= num_sms ? 8 : 5);
  if (schedule.snap < 0) schedule.snap = 0;
  return schedule;
}

// Calls run(kernel) of what the template's flags say.
template <int kHeadDim, class Run>
void with_kernel(bool bulk, bool ropes, Run&& run) {
  if (bulk) return run(ropes ? decode_kernel<kHeadDim, true, true> : decode_kernel<kHeadDim, true, false>);
  run(ropes ? decode_kernel<kHeadDim, false, true> : decode_kernel<kHeadDim, false, false>);
}

template <int kHeadDim>
void launch_decode(cudaStream_t stream, bool bulk, const DecodeParameters& p, int shares) {
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(shares)),
                          .block = dim3(kDecodeThreads),
                          .shared_bytes = static_cast<size_t>(decode_shared_bytes(kHeadDim, p.slots, p.rows))};
  with_kernel<kHeadDim>(bulk, p.inv_freq != nullptr,
                        [&](auto kernel) { launch(stream, shape, "decode attention", kernel, p); });
}

}  // namespace

void prepare_decode(int major) {
  const int slots = major >= 9 ? 12 : 5;
  const auto prepare = [&](int head_dim) {
    return [=](auto kernel) {
      prepare_kernel(kernel, static_cast<size_t>(decode_shared_bytes(head_dim, slots, kMaxDecodeRows)),
                     "decode attention");
    };
  };
  for (const bool bulk : {false, true})
    for (const bool ropes : {false, true}) {
      if (bulk && major < 9) continue;
      with_kernel<64>(bulk, ropes, prepare(64));
      with_kernel<128>(bulk, ropes, prepare(128));
    }
}

int64_t PagedAttention::workspace_bytes(int num_heads, int num_kv_heads, int head_dim, int64_t max_positions) const {
  return int64_t{2} * num_sms_ * blocks_of(max_positions) * HeadGroups(num_heads, num_kv_heads).heads * (head_dim + 2) *
         4;
}

bool PagedAttention::decode_ropes(int rows, int num_heads, int num_kv_heads) const {
  return rows * num_kv_heads * HeadGroups(num_heads, num_kv_heads).per_kv <= 2 * num_sms_;
}

void PagedAttention::decode(cudaStream_t stream, const AttentionProblem& problem, const DecodeRows& rows,
                            void* workspace, int64_t workspace_bytes, int64_t max_positions,
                            const DecodeSchedule& wanted) const {
  check_attention(problem);
  check(rows.first_row >= 0 && rows.rows >= 0 && rows.first_row + rows.rows <= problem.num_rows, "attention: rows [",
        rows.first_row, ", ", rows.first_row + rows.rows, ") of ", problem.num_rows);
  const KvView& kv = problem.kv;
  if (!has_tiles(kv.head_dim)) {
    check(problem.rope.inv_freq == nullptr, "attention: decode with rope takes head_dims 64 and 128, got ",
          kv.head_dim);
    return any_dim(stream, problem, rows);
  }

  const HeadGroups groups(problem.num_heads, kv.num_heads);
  const bool bulk = major_ >= 9 && !wanted.plain_copies;
  const int box = box_positions(kv.block_tokens);
  for (int done = 0; done < rows.rows; done += kMaxDecodeRows) {
    const int first = rows.first_row + done, count = std::min(kMaxDecodeRows, rows.rows - done);
    const DecodeSchedule schedule = choose_schedule(major_, num_sms_, count * kv.num_heads * groups.per_kv, wanted);
    const int64_t states = schedule.shares * blocks_of(max_positions) * groups.heads;
    check(schedule.shares <= kMaxShares && schedule.slots >= 4 && schedule.slots <= kMaxDecodeSlots,
          "attention: no such schedule: ", schedule.shares, " shares, ", schedule.slots, " slots");
    check(workspace_bytes >= states * (kv.head_dim + 2) * 4, "attention: ", states * (kv.head_dim + 2) * 4,
          " bytes of workspace are needed, got ", workspace_bytes);
    DecodeParameters p{
        .map = {},
        .kv = kv,
        .q = problem.q + first * problem.q_stride,
        .q_stride = problem.q_stride,
        .out = problem.out + first * problem.out_stride,
        .out_stride = problem.out_stride,
        .row_slot = rows.row_slot + first,
        .row_offset = rows.row_offset + first,
        .seq_len = problem.seq_len,
        .block_tables = problem.block_tables,
        .block_table_stride = problem.block_table_stride,
        .q_norm = problem.rope.q_norm,
        .k_norm = problem.rope.k_norm,
        .inv_freq = problem.rope.inv_freq,
        .norm_epsilon = problem.rope.norm_epsilon,
        .partial_out = static_cast<float*>(workspace),
        .partial_state = reinterpret_cast<float2*>(static_cast<float*>(workspace) + states * kv.head_dim),
        .arrivals = counters_,
        .log2_scale = problem.scale * kLog2E,
        .rows = count,
        .num_heads = problem.num_heads,
        .heads_per_kv = problem.num_heads / kv.num_heads,
        .groups_per_kv = groups.per_kv,
        .group_heads = groups.heads,
        .max_blocks = static_cast<int>(blocks_of(max_positions)),
        .box = box,
        .slots = schedule.slots,
        .snap = schedule.snap,
        .zero = 0};
    if (bulk) p.map = kv_map(kv, box);
    if (kv.head_dim == 128)
      launch_decode<128>(stream, bulk, p, schedule.shares);
    else
      launch_decode<64>(stream, bulk, p, schedule.shares);
  }
}

}  // namespace rtp_llm::cuda
