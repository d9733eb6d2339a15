// linear_wgmma on the host: shapes checked, configuration chosen, launched. linear_wgmma.cuh has the kernel.
#include <algorithm>
#include <vector>

#include "device/cuda/linear_wgmma.cuh"

namespace rtp_llm::cuda {

std::vector<WgmmaShape> wgmma_shapes(LinearOutput output, int leaves) {
  // Of shapes that seem equally fast the first is taken.
  if (output == LinearOutput::kF32) return {{64, 128}, {128, 256, 2}, {128, 128}};
  if (output == LinearOutput::kGated)  // 224: 28,672 rows (Llama-3.1-8B) on 128 CTAs
    return {{64, 192}, {128, 256, 2}, {128, 192, 2}, {128, 192}, {64, 224}, {128, 224, 2}, {128, 224}};
  if (output == LinearOutput::kRoped) return {{128, 256, 2}, {128, 128, 2}};
  if (leaves == 1) return {{64, 64}, {128, 256, 2}, {128, 192, 2}, {128, 128, 2}, {128, 96, 2}, {128, 64}};
  return {{64, 64, 1, 2}, {128, 128, 2}, {128, 128, 1, 2}, {128, 64, 1, 2}};
}

namespace {

int row_tiles(const LinearProblem& problem, const WgmmaShape& shape) {
  return (problem.tiles() * kTileRows + shape.tile_rows - 1) / shape.tile_rows;
}

// Clusters that the problem has, each with one tile a CTA (or, split, one tile).
int clusters_of(const LinearProblem& problem, const WgmmaShape& shape) {
  const int token_tiles = (problem.rows + shape.tokens - 1) / shape.tokens;
  return (token_tiles + shape.share - 1) / shape.share * row_tiles(problem, shape);
}

// kRoped, measured on an H200: clocks that a warp takes for a column of 64 rows; what qkv_rope_store takes, more for
// each element; and rows up to which it is faster by itself, behind smaller tiles.
constexpr int kRopeClocks = 90, kRopeStoreClocks = 3000, kRopeStoreElementsAClock = 560, kMostRowsApart = 512;

// Clocks that a shape takes, roughly: waves of CTAs, each bound by its products or by what it must bring to its SM.
int64_t clocks(const LinearProblem& problem, const WgmmaShape& shape, int num_sms) {
  constexpr int kProductsAClock = 2048, kBytesAClock = 48;  // of an SM
  const int at_once = num_sms / (shape.share * shape.split);
  const int waves = (clusters_of(problem, shape) + at_once - 1) / at_once;
  const int tokens = std::min(shape.tokens, problem.rows);
  const int products = shape.tokens * shape.tile_rows * kBlockFeatures / kProductsAClock;
  const bool ropes = problem.output == LinearOutput::kRoped;
  const int brought = tokens + (ropes ? shape.tile_rows / shape.share : shape.tile_rows);
  const int bytes = brought * kBlockFeatures * 2 / kBytesAClock;
  constexpr int kPerTile = 2000;  // filling, draining, storing
  const int exchange = shape.split > 1 ? 2000 : 0;
  const int multiplying = std::max(products, bytes) * (problem.blocks() / shape.split);
  // A warp norms and rotates 64 rows of a tile while the next one is multiplied.
  const int finishing = ropes ? shape.tile_rows * kRopeClocks : 0;  // of the last one all warps do
  return int64_t{waves} * (std::max(multiplying, finishing) + kPerTile + exchange) + finishing / 4;
}

// The shape that takes the fewest clocks, and how many.
std::pair<WgmmaShape, int64_t> fastest(const LinearProblem& problem, int num_sms) {
  std::pair<WgmmaShape, int64_t> best{};
  for (const WgmmaShape& shape : wgmma_shapes(problem.output, problem.leaves)) {
    const int64_t needed = clocks(problem, shape, num_sms);
    if (best.second == 0 || needed < best.second) best = {shape, needed};
  }
  return best;
}

}  // namespace

WgmmaShape wgmma_with(const LinearProblem& problem, int num_sms, WgmmaShape shape) {
  const int clusters = clusters_of(problem, shape), cluster = shape.share * shape.split;
  // A cluster that splits K takes one tile: its CTAs meet at the end.
  shape.grid = (shape.split > 1 ? clusters : std::min(clusters, num_sms / cluster)) * cluster;
  return shape;
}

WgmmaShape choose_wgmma(const LinearProblem& problem, int num_sms) {
  return wgmma_with(problem, num_sms, fastest(problem, num_sms).first);
}

bool wgmma_ropes(const LinearProblem& problem, int num_sms) {
  if (!ropes_by_table(problem.rope) || problem.leaves > 1 || problem.rows <= kMostRowsApart) return false;
  LinearProblem product = problem, roped = problem;
  product.output = LinearOutput::kBf16;
  roped.output = LinearOutput::kRoped;
  const int64_t elements = int64_t{problem.rows} * problem.out_features;
  const int64_t apart = fastest(product, num_sms).second + kRopeStoreClocks + elements / kRopeStoreElementsAClock;
  return fastest(roped, num_sms).second < apart;
}

void linear_wgmma(cudaStream_t stream, const LinearProblem& problem, const WgmmaShape& shape) {
  check(problem.out_features % (problem.output == LinearOutput::kGated ? 16 : 8) == 0,
        "linear_wgmma: out features must", " be a multiple of 8, 16 if gated, got ", problem.out_features);
  check(problem.leaves <= problem.blocks(), "linear_wgmma: ", problem.leaves, " leaves of ", problem.blocks(),
        " blocks: each must have one");
  check(problem.output != LinearOutput::kRoped ||
            (ropes_by_table(problem.rope) && problem.rope.num_rows == problem.rows && problem.residual == nullptr),
        "linear_wgmma: rotation needs a table, heads of 64 or 128 and no residual");
  const int cluster = shape.share * shape.split;
  check(shape.grid > 0 && shape.grid % cluster == 0, "linear_wgmma: ", shape.grid, " CTAs in clusters of ", cluster);
  check(shape.split == 1 || shape.grid >= clusters_of(problem, shape) * cluster,
        "linear_wgmma: a cluster that splits K takes one tile, ", shape.grid, " CTAs are too few");
  const auto start = problem.output == LinearOutput::kBf16    ? tiled::start_bf16
                     : problem.output == LinearOutput::kF32   ? tiled::start_f32
                     : problem.output == LinearOutput::kGated ? tiled::start_gated
                                                              : tiled::start_roped;
  check(start(stream, problem, shape), "linear_wgmma: no kernel for ", shape.tokens, " tokens x ", shape.tile_rows,
        " rows, share ", shape.share, ", split ", shape.split, ", ", problem.leaves, " leaves");
}

}  // namespace rtp_llm::cuda
