// gated_activation, add, gather_rows, and what keeps slots and blocks: ops without arithmetic across lanes.
#include <algorithm>
#include <cstring>

#include "device/cpu/activation.h"
#include "device/cpu/cpu_ops.h"
#include "device/cpu/rows.h"
#include "device/cpu/slot_rows.h"
#include "device/cpu/token_words.h"

namespace rtp_llm::cpu {
namespace {

template <Activation kActivation, class In, class Out>
void gated_row(const In* gate, const In* up, int64_t features, Out* out) {
  for_lanes(features, [&](int64_t i, int64_t n) {
    store_run(out + i, activate<kActivation>(load_run(gate + i, n)) * load_run(up + i, n), n);
  });
}

// Several chunks a row when there are few rows.
constexpr int64_t kColumnsPerChunk = 2048;

}  // namespace

void CpuOps::gated_activation(const GatedActivationArgs& args) {
  const int64_t rows = args.out.shape[0], features = args.out.shape[1];
  check_features("gated_activation", "out", args.out, rows, features);
  check_features("gated_activation", "gate_up", args.gate_up, rows, 2 * features);
  const int64_t columns = (features + kColumnsPerChunk - 1) / kColumnsPerChunk;
  with_type("gated_activation", args.gate_up.dtype, args.gate_up.data, [&](auto* gate_up) {
    with_type("gated_activation", args.out.dtype, args.out.data, [&](auto* out) {
      const auto run = [&]<Activation kActivation>() {
        for_rows(rows * columns, std::min(features, kColumnsPerChunk), [&](int64_t item, int) {
          const int64_t row = item / columns, first = item % columns * kColumnsPerChunk;
          const auto* gate = gate_up + row * args.gate_up.stride[0] + first;
          gated_row<kActivation>(gate, gate + features, std::min(features - first, kColumnsPerChunk),
                                 out + row * args.out.stride[0] + first);
        });
      };
      with_activation(args.activation, run);
    });
  });
}

void CpuOps::add(const Tensor& x, const Tensor& delta) {
  const int64_t rows = x.shape[0], features = x.shape[1];
  check_features("add", "x", x, rows, features);
  check_features("add", "delta", delta, rows, features);
  with_type("add", x.dtype, x.data, [&](auto* to) {
    with_type("add", delta.dtype, delta.data, [&](auto* from) {
      for_rows(rows, features, [&](int64_t row, int) {
        auto* a = to + row * x.stride[0];
        const auto* b = from + row * delta.stride[0];
        for_lanes(features,
                  [&](int64_t i, int64_t n) { store_run(a + i, load_run(a + i, n) + load_run(b + i, n), n); });
      });
    });
  });
}

void CpuOps::gather_rows(const GatherRowsArgs& args) {
  const int64_t count = args.rows.numel(), features = args.x.shape[1];
  check_features("gather_rows", "x", args.x, args.x.shape[0], features);
  check_features("gather_rows", "out", args.out, count, features);
  check(args.rows.dtype == DType::kI32, "gather_rows: rows must be int32");
  check(args.x.dtype == args.out.dtype, "gather_rows: x is ", name_of(args.x.dtype), ", out is ",
        name_of(args.out.dtype));
  const int64_t size = size_of(args.x.dtype);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = args.rows.as<const int32_t>()[i];
    check(row >= 0 && row < args.x.shape[0], "gather_rows: row ", row, " out of range, x has ", args.x.shape[0]);
    std::memcpy(args.out.as<uint8_t>() + i * args.out.stride[0] * size,
                args.x.as<const uint8_t>() + row * args.x.stride[0] * size, static_cast<size_t>(features * size));
  }
}

void CpuOps::advance(const AdvanceArgs& args) {
  const Slots& slots = slots_of("advance", args.step);
  const int64_t num_slots = slots.seq_len.shape[0];
  for (const Segment& segment : args.step->segments) {
    check(segment.slot >= 0 && segment.slot < num_slots, "advance: slot ", segment.slot, " out of range, there are ",
          num_slots);
    slots.seq_len.as<int32_t>()[segment.slot] += segment.rows;
  }
}

void CpuOps::update_slots(const UpdateSlotsArgs& args) {
  check(args.slots != nullptr, "update_slots: slots missing");
  const Slots& slots = *args.slots;
  const int64_t num_slots = slots.seq_len.shape[0], width = slots.block_tables.shape[1];
  for (const SlotUpdate& update : args.updates) {
    check(update.slot >= 0 && update.slot < num_slots, "update_slots: slot ", update.slot, " out of range, there are ",
          num_slots);
    check(update.first_block >= 0 && update.num_blocks >= 0 && int64_t{update.first_block} + update.num_blocks <= width,
          "update_slots: blocks [", update.first_block, ", ", int64_t{update.first_block} + update.num_blocks,
          ") of slot ", update.slot, " are beyond its block table of ", width);
    check(update.first_id >= 0 &&
              static_cast<size_t>(update.first_id) + static_cast<size_t>(update.num_blocks) <= args.blocks.size(),
          "update_slots: ids from ", update.first_id, " on, ", update.num_blocks, " of them, there are ",
          args.blocks.size());
    std::copy_n(args.blocks.begin() + update.first_id, update.num_blocks,
                slots.block_tables.as<int32_t>() + update.slot * slots.block_tables.stride[0] + update.first_block);
    if (update.binds == 0) continue;
    slots.last_token.as<int32_t>()[update.slot] = update.last_token;
    slots.seq_len.as<int32_t>()[update.slot] = update.seq_len;
    slots.output_position.as<int32_t>()[update.slot] = update.output_position;
    if (slots.sampling != nullptr) slots.sampling[update.slot] = update.sampling;
    if (update.sampling.has_token_words != 0) write_token_words(slots, update, args.words);
  }
}

void CpuOps::zero_blocks(const ZeroBlocksArgs& args) {
  check(args.base != nullptr && args.block_bytes > 0, "zero_blocks: blocks of ", args.block_bytes, " bytes");
  for (int32_t block : args.blocks) std::memset(args.base + block * args.block_bytes, 0, args.block_bytes);
}

}  // namespace rtp_llm::cpu
