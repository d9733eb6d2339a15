// paged_attention: work items over (sequence, kv head, rows), each folding its lanes over the context.
// Prefill and decode differ only in how the work is cut, so their bits are equal.
#include <algorithm>
#include <cstring>

#include "device/cpu/attention_fold.h"
#include "device/cpu/cpu_ops.h"
#include "device/cpu/rows.h"
#include "device/cpu/slot_rows.h"

namespace rtp_llm::cpu {
namespace {

constexpr int64_t kMaxLanes = 192;     // of an item: amortises the tile loads, fits L2
constexpr int64_t kMaxSplitRows = 16;  // decode rows that may be split over threads at stretches

using Item = AttentionItem;

struct Shape {
  explicit Shape(const AttentionArgs& args)
      : num_rows(args.q.shape[0]),
        num_heads(args.q.shape[1]),
        group(args.q.shape[1] / std::max(1, args.kv.num_heads)),
        head_dim(args.kv.head_dim),
        padded_dim((head_dim + kLanes - 1) / kLanes * kLanes) {}
  int64_t rows_per_item() const { return std::max<int64_t>(1, kMaxLanes / group); }
  int64_t lanes_per_item() const { return rows_per_item() * group; }
  int64_t num_rows, num_heads, group, head_dim, padded_dim;
};

// One thread's part of the scratch.
struct Workplace {
  static int64_t floats(const Shape& shape) {
    return 3 * kTilePositions * shape.padded_dim +
           shape.lanes_per_item() * (3 * shape.padded_dim + kTilePositions + 4) + 64;
  }
  Workplace(float* at, const Shape& shape) {
    const auto take = [&](int64_t count) {
      float* taken = at;
      at += count;
      return taken;
    };
    const int64_t lanes = shape.lanes_per_item(), dim = shape.padded_dim;
    tile = {take(kTilePositions * dim), take(kTilePositions * dim), take(kTilePositions * dim)};
    q = take(lanes * dim);
    scores = take(lanes * kTilePositions);
    stretch = {take(lanes), take(lanes), nullptr};
    total = {take(lanes), take(lanes), nullptr};
    stretch.out = take(lanes * dim);
    total.out = take(lanes * dim);
  }
  KvTile tile;
  float* q;
  float* scores;
  FoldState stretch;
  FoldState total;
};

// The q vectors of an item's lanes, [rows][group][padded_dim] in f32.
void load_queries(const AttentionArgs& args, const Shape& shape, const Item& item, float* q) {
  with_type("paged_attention", args.q.dtype, args.q.data, [&](auto* from) {
    for (int64_t lane = 0; lane < item.rows * shape.group; ++lane) {
      const int64_t row = item.first_row + lane / shape.group;
      const int64_t head = item.kv_head * shape.group + lane % shape.group;
      const auto* vector = from + row * args.q.stride[0] + head * args.q.stride[1];
      for_lanes(shape.head_dim,
                [&](int64_t d, int64_t n) { store(q + lane * shape.padded_dim + d, load_run(vector + d, n)); });
    }
  });
}

// Folds an item's lanes over the positions of one stretch of 512.
void fold_stretch(const AttentionArgs& args, const Shape& shape, const Item& item, int64_t stretch,
                  const Workplace& place) {
  reset(place.stretch, item.rows * shape.group, shape.padded_dim);
  const int64_t last = item.position + item.rows - 1;
  const int32_t* blocks =
      args.step->slots->block_tables.as<const int32_t>() + item.slot * args.step->slots->block_tables.stride[0];
  const auto fold = [&](int64_t first, int64_t rows, int valid) {
    const int64_t lane = first * shape.group;
    fold_tile(place.tile, place.q + lane * shape.padded_dim, rows * shape.group, valid, args.scale, shape.padded_dim,
              place.scores,
              {place.stretch.max + lane, place.stretch.sum + lane, place.stretch.out + lane * shape.padded_dim});
  };
  const int64_t end = std::min((stretch + 1) * kStretchPositions, last + 1);
  for (int64_t tile = stretch * kStretchPositions; tile < end; tile += kTilePositions) {
    const int64_t count = std::min<int64_t>(kTilePositions, last + 1 - tile);
    load_tile(args.kv, item.kv_head, blocks, tile, static_cast<int>(count), shape.padded_dim, place.tile);
    // Rows whose position lies within the tile see part of it, later rows all of it.
    int64_t row = std::max<int64_t>(0, tile - item.position);
    for (; row < item.rows && item.position + row < tile + kTilePositions - 1; ++row)
      fold(row, 1, static_cast<int>(item.position + row - tile + 1));
    if (row < item.rows) fold(row, item.rows - row, kTilePositions);
  }
}

void write_out(const AttentionArgs& args, const Shape& shape, const Item& item, const FoldState& state) {
  with_type("paged_attention", args.out.dtype, args.out.data, [&](auto* out) {
    for (int64_t lane = 0; lane < item.rows * shape.group; ++lane) {
      const int64_t row = item.first_row + lane / shape.group;
      const int64_t head = item.kv_head * shape.group + lane % shape.group;
      auto* to = out + row * args.out.stride[0] + head * shape.head_dim;
      const F32x16 inverse = splat(1.0f / state.sum[lane]);
      for_lanes(shape.head_dim, [&](int64_t d, int64_t n) {
        store_run(to + d, load(state.out + lane * shape.padded_dim + d) * inverse, n);
      });
    }
  });
}

// Lanes before an item's first position of a stretch took no part in it: their m is -inf. They are
// skipped, so that each lane merges only stretches it has positions in.
void merge_stretch(const Shape& shape, const Item& item, int64_t stretch, const FoldState& total,
                   const FoldState& part) {
  const int64_t first_row = std::max<int64_t>(0, stretch * kStretchPositions - item.position);
  const int64_t lane = first_row * shape.group;
  const auto from = [&](const FoldState& state) {
    return FoldState{state.max + lane, state.sum + lane, state.out + lane * shape.padded_dim};
  };
  merge(from(total), from(part), item.rows * shape.group - lane, shape.padded_dim);
}

void run_whole(const AttentionArgs& args, const Shape& shape, const Item& item, Workplace place) {
  load_queries(args, shape, item, place.q);
  const int64_t stretches = (item.position + item.rows - 1) / kStretchPositions + 1;
  fold_stretch(args, shape, item, 0, place);
  std::swap(place.total, place.stretch);
  for (int64_t stretch = 1; stretch < stretches; ++stretch) {
    fold_stretch(args, shape, item, stretch, place);
    merge_stretch(shape, item, stretch, place.total, place.stretch);
  }
  write_out(args, shape, item, place.total);
}

// The workspace as partial states, one a (row, kv head, stretch): [max | sum | out].
struct Partials {
  Partials(const Tensor& workspace, const Shape& shape)
      : at(workspace.as<float>()), group(shape.group), dim(shape.padded_dim) {}
  static int64_t floats(int64_t group, int64_t dim) { return group * (dim + 2); }
  FoldState state(int64_t index) const {
    float* first = at + index * floats(group, dim);
    return {first, first + group, first + 2 * group};
  }
  float* at;
  int64_t group, dim;
};

void run_stretch(const AttentionArgs& args, const Shape& shape, const Item& item, Workplace place,
                 const FoldState& partial) {
  load_queries(args, shape, item, place.q);
  place.stretch = partial;
  fold_stretch(args, shape, item, item.stretch, place);
}

void check_attention(const AttentionArgs& args) {
  const KvView& kv = args.kv;
  check(args.q.ndim == 3 && args.q.shape[2] == kv.head_dim && args.q.stride[2] == 1,
        "paged_attention: q must be [M, heads, ", kv.head_dim, "]");
  check(kv.num_heads > 0 && args.q.shape[1] % kv.num_heads == 0, "paged_attention: ", args.q.shape[1],
        " heads are no multiple of ", kv.num_heads, " kv heads");
  check_features("paged_attention", "out", args.out, args.q.shape[0], args.q.shape[1] * kv.head_dim);
}

// Throws InvalidArgument unless rows, table and every block of each segment's context exist.
void check_context(const AttentionArgs& args, const Shape& shape, std::span<const Segment> segments) {
  const auto ignore = [](int64_t, int32_t, int64_t) {};
  for_each_row("paged_attention", args.step, segments, shape.num_rows, ignore);
  const Slots& slots = *args.step->slots;
  for (const Segment& segment : segments) {
    if (segment.rows == 0) continue;
    const int64_t last = slots.seq_len.as<const int32_t>()[segment.slot] + int64_t{segment.rows} - 1;
    const auto block_at = [&](int64_t position) {
      return block_of("paged_attention", slots, segment.slot, position, args.kv.block_tokens, args.kv.num_blocks);
    };
    block_at(last);
    const auto* table = slots.block_tables.as<const uint32_t>() + segment.slot * slots.block_tables.stride[0];
    uint32_t highest = 0;  // unsigned: a negative id is high, too
    for (int64_t i = 0; i <= last / args.kv.block_tokens; ++i) highest = std::max(highest, table[i]);
    if (highest < args.kv.num_blocks) continue;
    for (int64_t at = 0; at < last; at += args.kv.block_tokens) block_at(at);
  }
}

// Items of all segments, later (longer) rows first.
void make_items(const AttentionArgs& args, const Shape& shape, std::span<const Segment> segments,
                std::vector<Item>& items) {
  items.clear();
  for (const Segment& segment : segments) {
    const int64_t base = args.step->slots->seq_len.as<const int32_t>()[segment.slot];
    const int64_t step = shape.rows_per_item();
    for (int64_t row = (segment.rows - 1) / step * step; row >= 0; row -= step)
      for (int head = 0; head < args.kv.num_heads; ++head)
        items.push_back({.slot = segment.slot,
                         .first_row = segment.first_row + row,
                         .rows = std::min(step, segment.rows - row),
                         .position = base + row,
                         .kv_head = head,
                         .stretch = -1,
                         .partial = 0});
  }
}

// Items of one row cut at their stretches; `partial` numbers them.
void split_at_stretches(const std::vector<Item>& items, std::vector<Item>& pieces) {
  for (const Item& item : items)
    for (int64_t stretch = 0; stretch <= item.position / kStretchPositions; ++stretch) {
      pieces.push_back(item);
      pieces.back().stretch = stretch;
      pieces.back().partial = static_cast<int64_t>(pieces.size()) - 1;
    }
}

}  // namespace

void CpuOps::attention(const AttentionArgs& args, Form form) {
  check_attention(args);
  slots_of("paged_attention", args.step);
  const std::span<const Segment> segments = form == Form::kPrefill ? args.step->prefills : args.step->decodes;
  const Shape shape(args);
  check_context(args, shape, segments);
  std::vector<Item>& items = attention_items_;
  make_items(args, shape, segments, items);
  if (items.empty()) return;
  const int64_t floats = Workplace::floats(shape);
  auto* scratch = static_cast<float*>(attention_scratch_.at_least(floats * 4 * pool_.num_threads()));
  // The pads of q, K and V must be zero; the lanes beyond head_dim are never written otherwise.
  if (shape.padded_dim != shape.head_dim)
    std::memset(scratch, 0, static_cast<size_t>(floats * 4 * pool_.num_threads()));
  const auto place = [&](int thread) { return Workplace(scratch + thread * floats, shape); };

  const auto num_items = static_cast<int64_t>(items.size());
  std::vector<Item>& pieces = attention_pieces_;
  pieces.clear();
  if (form == Form::kDecode && pool_.num_threads() > 1 && num_items < 2 * int64_t{pool_.num_threads()} &&
      num_items <= kMaxSplitRows &&
      std::all_of(items.begin(), items.end(), [](const Item& item) { return item.rows == 1; }))
    split_at_stretches(items, pieces);
  const int64_t partial_bytes =
      static_cast<int64_t>(pieces.size()) * Partials::floats(shape.group, shape.padded_dim) * 4;
  if (pieces.size() <= items.size() || args.workspace.numel() < partial_bytes) {
    pool_.run(num_items,
              [&](int64_t i, int thread) { run_whole(args, shape, items[static_cast<size_t>(i)], place(thread)); });
    return;
  }
  const Partials partials(args.workspace, shape);
  pool_.run(static_cast<int64_t>(pieces.size()), [&](int64_t i, int thread) {
    run_stretch(args, shape, pieces[static_cast<size_t>(i)], place(thread), partials.state(i));
  });
  for (const Item& piece : pieces) {
    const int64_t first = piece.partial - piece.stretch;
    if (piece.stretch > 0) merge(partials.state(first), partials.state(piece.partial), shape.group, shape.padded_dim);
    if (piece.stretch == piece.position / kStretchPositions) write_out(args, shape, piece, partials.state(first));
  }
}

void CpuOps::paged_attention_prefill(const AttentionArgs& args) { attention(args, Form::kPrefill); }
void CpuOps::paged_attention_decode(const AttentionArgs& args) { attention(args, Form::kDecode); }

int64_t CpuOps::attention_workspace_bytes(int64_t max_rows, int num_heads, int, int head_dim,
                                          int64_t max_positions) const {
  const int64_t rows = std::min(max_rows, kMaxSplitRows);
  const int64_t stretches = (max_positions + kStretchPositions - 1) / kStretchPositions;
  const int64_t padded_dim = (int64_t{head_dim} + kLanes - 1) / kLanes * kLanes;
  return rows * stretches * Partials::floats(num_heads, padded_dim) * 4;
}

}  // namespace rtp_llm::cpu
