// linear_stream on the host: shapes checked, configuration chosen, launched. linear_stream.cuh has the kernel.
#include <algorithm>

#include "device/cuda/linear_stream.cuh"
#include "device/cuda/tensor_map.h"

namespace rtp_llm::cuda {

using namespace streaming;

namespace {

struct Layout {
  int weights_bytes, x_bytes, slot_bytes;
};

Layout layout_of(const StreamShape& shape, int tokens) {
  const int blocks = shape.leaves_in_cta * shape.blocks_in_stage;
  const int weights = blocks * shape.tiles * kTileBytes, x = blocks * tokens * 128;
  return {weights, x, weights + (x + 1023) / 1024 * 1024};
}

// Stages of a group of tiles: as many as its longest leaf has.
int steps_of(const LinearProblem& problem, const StreamShape& shape) {
  int most = 0;
  for (int leaf = 0; leaf < problem.leaves; ++leaf)
    most = std::max(most, first_block(leaf + 1, problem.leaves, problem.blocks()) -
                              first_block(leaf, problem.leaves, problem.blocks()));
  return (most + shape.blocks_in_stage - 1) / shape.blocks_in_stage;
}

int padded_tokens(int rows) { return rows == 1 ? 1 : rows <= 8 ? 8 : rows <= 16 ? 16 : 32; }

void check_shape(const LinearProblem& problem, const StreamShape& shape, int slot_bytes) {
  const int groups = (problem.tiles() + shape.tiles - 1) / shape.tiles;
  check(problem.rows >= 1 && problem.rows <= kMaxStreamRows, "linear_stream: takes 1 to ", kMaxStreamRows,
        " rows, got ", problem.rows);
  check(shape.leaves_in_cta * shape.cluster == problem.leaves, "linear_stream: ", shape.leaves_in_cta,
        " leaves a CTA x ", shape.cluster, " CTAs must be the problem's ", problem.leaves, " leaves");
  check(problem.leaves == 1 || shape.grid == groups * shape.cluster,
        "linear_stream: with leaves a CTA takes one group: ", groups * shape.cluster, " CTAs, got ", shape.grid);
  check(problem.leaves == 1 || problem.output == LinearOutput::kBf16,
        "linear_stream: leaves are summed for bf16 outputs only");
  check(shape.blocks_in_stage == 1 || shape.blocks_in_stage == 4, "linear_stream: 1 or 4 blocks a stage, got ",
        shape.blocks_in_stage);
  check(shape.tiles * shape.leaves_in_cta + 2 <= max_warps(shape.blocks_in_stage), "linear_stream: ", shape.tiles,
        " tiles x ", shape.leaves_in_cta, " leaves with ", shape.blocks_in_stage, " blocks a stage are too many");
  check(shape.stages <= kMaxStages && shape.in_flight < shape.stages && shape.in_flight > 0,
        "linear_stream: ", shape.stages, " stages (at most ", kMaxStages, ") with ", shape.in_flight, " in flight");
  check(shape.stages * slot_bytes <= kRingBytes, "linear_stream: ring of ", shape.stages, " x ", slot_bytes,
        " bytes is larger than ", kRingBytes);
}

}  // namespace

StreamShape choose_stream(const LinearProblem& problem, int num_sms) {
  // Four leaves are warps of a CTA; two are too, but with more tokens x is what counts: in a cluster each CTA reads its
  // leaf of x only.
  return stream_with(problem, num_sms, problem.leaves == 2 && problem.rows > 8 ? 2 : 1, 4);
}

StreamShape stream_with(const LinearProblem& problem, int num_sms, int cluster, int blocks_in_stage) {
  StreamShape shape{.leaves_in_cta = problem.leaves / cluster, .cluster = cluster};
  const int tiles = problem.tiles(), most = (max_warps(1) - 2) / shape.leaves_in_cta;
  shape.tiles = (tiles * cluster + num_sms - 1) / num_sms;
  if (shape.tiles > most) shape.tiles = std::min(most, 8);
  const int groups = (tiles + shape.tiles - 1) / shape.tiles;
  shape.grid = problem.leaves == 1 ? std::min(groups, num_sms) : groups * cluster;
  const int tokens = padded_tokens(problem.rows);
  shape.blocks_in_stage = blocks_in_stage;
  if (shape.tiles * shape.leaves_in_cta + 2 > max_warps(4) || layout_of(shape, tokens).slot_bytes * 5 > kRingBytes)
    shape.blocks_in_stage = 1;
  const Layout layout = layout_of(shape, tokens);
  // No more than are used, and one that is never filled: all of a small problem is requested at once, and its ring
  // leaves room for other kernels' CTAs.
  const int rounds = problem.leaves == 1 ? (groups + shape.grid - 1) / shape.grid : 1;
  shape.stages = std::min({kMaxStages, kRingBytes / layout.slot_bytes, rounds * steps_of(problem, shape) + 1});
  shape.in_flight = std::clamp(80 * 1024 / layout.weights_bytes, 1, std::min(8, shape.stages - 1));
  return shape;
}

void linear_stream(cudaStream_t stream, const LinearProblem& problem, const StreamShape& shape) {
  const int tokens = padded_tokens(problem.rows);
  const Layout layout = layout_of(shape, tokens);
  check_shape(problem, shape, layout.slot_bytes);
  StreamParameters p{.x = make_tensor_map(
                         {.x = problem.x,
                          .rows = problem.rows,
                          .features = problem.in_features,
                          .stride = problem.x_stride,
                          .box_rows = problem.rows,  // what lies in the rest of a slot goes to sums that nobody stores
                          .box_features = tokens == 1 ? kBlockFeatures * shape.blocks_in_stage : kBlockFeatures,
                          .swizzle = tokens > 1}),
                     .weights = static_cast<const uint8_t*>(problem.weights),
                     .epilogue = epilogue_of(problem),
                     .shape = shape,
                     .first_block = {},
                     .total_tiles = problem.tiles(),
                     .groups = (problem.tiles() + shape.tiles - 1) / shape.tiles,
                     .leaves = problem.leaves,
                     .steps = steps_of(problem, shape),
                     .slot_bytes = layout.slot_bytes,
                     .x_at = layout.weights_bytes,
                     .zero = 0};
  for (int leaf = 0; leaf <= problem.leaves; ++leaf)
    p.first_block[leaf] = first_block(leaf, problem.leaves, problem.blocks());
  switch (problem.output) {
    case LinearOutput::kBf16: return start_stream<LinearOutput::kBf16>(stream, tokens, p);
    case LinearOutput::kF32: return start_stream<LinearOutput::kF32>(stream, tokens, p);
    case LinearOutput::kGated: return start_stream<LinearOutput::kGated>(stream, tokens, p);
    case LinearOutput::kRoped: break;
  }
  check(false, "linear_stream: norm and rotation follow no product here");
}

}  // namespace rtp_llm::cuda
