// What a step does to slots and blocks besides computing: update_slots and zero_blocks before it, advance behind it.
// update_slots and zero_blocks let no successor start early: what reads slots before its wait finds them as they are to
// be.
#include <algorithm>

#include "device/cuda/cuda_ops.h"
#include "device/cuda/launch.h"
#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {
namespace {

constexpr int kThreads = 256;

struct SlotArrays {
  int32_t* last_token;
  int32_t* seq_len;
  int32_t* output_position;
  int32_t* block_tables;
  int64_t table_stride;
  SamplingState* sampling;
};

// A CTA an update.
__global__ void apply_updates(const SlotUpdate* updates, const int32_t* blocks, const SlotArrays slots) {
  wait_for_predecessor();
  const SlotUpdate& update = updates[blockIdx.x];
  const int32_t slot = update.slot;
  for (int i = threadIdx.x; i < update.num_blocks; i += blockDim.x)
    slots.block_tables[slot * slots.table_stride + update.first_block + i] = blocks[update.first_id + i];
  if (!update.binds) return;
  static_assert(sizeof(SamplingState) % 4 == 0);
  const auto* from = reinterpret_cast<const uint32_t*>(&update.sampling);
  auto* to = reinterpret_cast<uint32_t*>(slots.sampling + slot);
  for (unsigned i = threadIdx.x; i < sizeof(SamplingState) / 4; i += blockDim.x) to[i] = from[i];
  if (threadIdx.x != 0) return;
  slots.last_token[slot] = update.last_token;
  slots.seq_len[slot] = update.seq_len;
  slots.output_position[slot] = update.output_position;
}

// CTAs (piece, block).
__global__ void zero(uint8_t* base, int64_t block_bytes, const int32_t* blocks) {
  wait_for_predecessor();
  auto* at = reinterpret_cast<uint4*>(base + blocks[blockIdx.y] * block_bytes);
  const int64_t words = block_bytes / 16, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < words; i += step) at[i] = {};
}

// The number of segments is the device's: a captured step is replayed with fewer than it was captured for.
__global__ void advance_slots(const StepCounts* counts, const Segment* segments, int32_t* seq_len) {
  let_successor_start();
  wait_for_predecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < counts->segments) seq_len[segments[i].slot] += segments[i].rows;
}

}  // namespace

void CudaOps::update_slots(const UpdateSlotsArgs& args) {
  const Slots& slots = *args.slots;
  for (const SlotUpdate& update : args.updates) {
    check(update.slot >= 0 && update.slot < slots.seq_len.shape[0], "update_slots: slot ", update.slot,
          " out of range, there are ", slots.seq_len.shape[0]);
    check(update.first_block >= 0 && update.num_blocks >= 0 &&
              update.first_block + update.num_blocks <= slots.block_tables.shape[1],
          "update_slots: entries [", update.first_block, ", ", update.first_block + update.num_blocks, ") of slot ",
          update.slot, " out of range, a block table has ", slots.block_tables.shape[1]);
  }
  if (args.updates.empty()) return;
  const SlotArrays arrays{.last_token = slots.last_token.as<int32_t>(),
                          .seq_len = slots.seq_len.as<int32_t>(),
                          .output_position = slots.output_position.as<int32_t>(),
                          .block_tables = slots.block_tables.as<int32_t>(),
                          .table_stride = slots.block_tables.stride[0],
                          .sampling = slots.sampling};
  launch(stream(), {.grid = dim3(args.updates.size()), .block = dim3(64)}, "update_slots", apply_updates,
         args.device_updates, args.device_blocks, arrays);
}

void CudaOps::zero_blocks(const ZeroBlocksArgs& args) {
  check(args.block_bytes % 16 == 0, "zero_blocks: blocks of ", args.block_bytes, " bytes, a multiple of 16 is needed");
  if (args.blocks.empty()) return;
  const int64_t pieces = std::clamp<int64_t>(args.block_bytes / (16 * kThreads * 8), 1, 64);
  constexpr size_t kMost = 65'535;  // CTAs in y
  for (size_t first = 0; first < args.blocks.size(); first += kMost)
    launch(stream(), {.grid = dim3(pieces, std::min(kMost, args.blocks.size() - first)), .block = dim3(kThreads)},
           "zero_blocks", zero, args.base, args.block_bytes, args.device_blocks + first);
}

void CudaOps::advance(const AdvanceArgs& args) {
  const int64_t count = static_cast<int64_t>(args.step->segments.size());
  if (count == 0) return;
  launch(stream(), {.grid = dim3((count + kThreads - 1) / kThreads), .block = dim3(kThreads)}, "advance", advance_slots,
         args.step->device_counts, args.step->device_segments, args.step->slots->seq_len.as<int32_t>());
}

}  // namespace rtp_llm::cuda
