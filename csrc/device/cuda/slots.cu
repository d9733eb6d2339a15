// What a step does to slots and blocks besides computing: update_slots and zero_blocks before it, advance behind it.
// update_slots and zero_blocks let no successor start early: what reads slots before its wait finds them as they are to
// be.
#include <algorithm>

#include "device/cuda/cuda_ops.h"
#include "device/cuda/launch.h"
#include "device/cuda/ptx.cuh"
#include "device/token_rules.h"

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
  uint32_t* token_words;
  int64_t vocab;
  TokenBias* biases;
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

// CTAs (piece, update): the words of slots that have some, as if nothing were said of any token but that it may come.
__global__ void clear_token_words(const SlotUpdate* updates, const SlotArrays slots) {
  wait_for_predecessor();
  const SlotUpdate& update = updates[blockIdx.y];
  if (!update.binds || !update.sampling.has_token_words) return;
  const uint32_t word = update.num_allowed > 0 ? kTokenBarred : 0u;
  uint32_t* const words = slots.token_words + update.slot * slots.vocab;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < slots.vocab; i += step) words[i] = word;
}

// A CTA an update. REQUIRES: clear_token_words has run.
__global__ void write_token_words(const SlotUpdate* updates, const int32_t* list, const SlotArrays slots) {
  wait_for_predecessor();
  const SlotUpdate& update = updates[blockIdx.x];
  if (!update.binds || !update.sampling.has_token_words) return;
  uint32_t* const words = slots.token_words + update.slot * slots.vocab;
  const int32_t* const biases = list + update.first_word;
  const int32_t* const allowed = biases + 2 * update.sampling.num_biases;
  const int32_t* const prompt = allowed + update.num_allowed;
  const int32_t* const output = prompt + update.num_prompt;
  const int first = threadIdx.x, step = blockDim.x;
  for (int i = first; i < update.num_allowed; i += step) atomicAnd(words + allowed[i], ~kTokenBarred);
  for (int i = first; i < update.num_prompt; i += step) atomicOr(words + prompt[i], kTokenInPrompt);
  for (int i = first; i < update.num_output; i += step) atomicAdd(words + output[i], 1u);
  for (int i = first; i < update.sampling.num_biases; i += step) {
    const int32_t token = biases[2 * i];
    atomicOr(words + token, kTokenBiased);
    slots.biases[int64_t{update.slot} * kMaxTokenBiases + i] = {token, __int_as_float(biases[2 * i + 1])};
  }
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
  bool has_token_words = false;
  for (const SlotUpdate& update : args.updates) {
    check(update.slot >= 0 && update.slot < slots.seq_len.shape[0], "update_slots: slot ", update.slot,
          " out of range, there are ", slots.seq_len.shape[0]);
    check(update.first_block >= 0 && update.num_blocks >= 0 &&
              update.first_block + update.num_blocks <= slots.block_tables.shape[1],
          "update_slots: entries [", update.first_block, ", ", update.first_block + update.num_blocks, ") of slot ",
          update.slot, " out of range, a block table has ", slots.block_tables.shape[1]);
    if (!update.binds || !update.sampling.has_token_words) continue;
    has_token_words = true;
    check(!slots.token_words.empty() && slots.biases != nullptr, "update_slots: slot ", update.slot,
          " has token words, there is no room for any");
    check(update.sampling.num_biases >= 0 && update.sampling.num_biases <= kMaxTokenBiases, "update_slots: slot ",
          update.slot, " has ", update.sampling.num_biases, " biases, at most ", kMaxTokenBiases);
    check(update.num_allowed >= 0 && update.num_prompt >= 0 && update.num_output >= 0 && update.first_word >= 0 &&
              static_cast<size_t>(update.first_word) + static_cast<size_t>(update.num_words()) <= args.words.size(),
          "update_slots: words from ", update.first_word, " on, ", update.num_words(), " of them, there are ",
          args.words.size());
  }
  if (args.updates.empty()) return;
  const SlotArrays arrays{.last_token = slots.last_token.as<int32_t>(),
                          .seq_len = slots.seq_len.as<int32_t>(),
                          .output_position = slots.output_position.as<int32_t>(),
                          .block_tables = slots.block_tables.as<int32_t>(),
                          .table_stride = slots.block_tables.stride[0],
                          .sampling = slots.sampling,
                          .token_words = slots.token_words.as<uint32_t>(),
                          .vocab = slots.token_words.empty() ? 0 : slots.token_words.shape[1],
                          .biases = slots.biases};
  launch(stream(), {.grid = dim3(args.updates.size()), .block = dim3(64)}, "update_slots", apply_updates,
         args.device_updates, args.device_blocks, arrays);
  if (!has_token_words) return;
  const int64_t pieces = std::clamp<int64_t>(arrays.vocab / (kThreads * 8), 1, 32);
  launch(stream(), {.grid = dim3(pieces, args.updates.size()), .block = dim3(kThreads)}, "update_slots: clear",
         clear_token_words, args.device_updates, arrays);
  launch(stream(), {.grid = dim3(args.updates.size()), .block = dim3(kThreads)}, "update_slots: words",
         write_token_words, args.device_updates, args.device_words, arrays);
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
