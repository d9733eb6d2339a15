// pack_rows: rows of W, as the file has them, to their places in the packed layout (linear.h). 16 bytes a thread.
#include "device/cuda/launch.h"
#include "device/cuda/linear.h"
#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {
namespace {

__device__ __forceinline__ uint4 load_piece(const bf16* from) { return *reinterpret_cast<const uint4*>(from); }
__device__ __forceinline__ uint4 load_piece(const float* from) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  return {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)};
}

template <class In>
__global__ void pack_pieces(const PackRows p, int pieces, int groups) {
  wait_for_predecessor();
  const int piece = blockIdx.y * blockDim.x + threadIdx.x;
  if (piece >= pieces) return;
  const int row = packed_row(p.first_row + static_cast<int>(blockIdx.x), p.interleave);
  const int64_t group = static_cast<int64_t>(piece / 8) * groups + row / 8;
  auto* to = static_cast<uint8_t*>(p.weights) + group * kGroupBytes + piece % 8 * 128 + row % 8 * 16;
  *reinterpret_cast<uint4*>(to) =
      load_piece(static_cast<const In*>(p.rows) + static_cast<int64_t>(blockIdx.x) * p.in_features + piece * 8);
}

}  // namespace

int64_t packed_bytes(int64_t out_features, int64_t in_features) {
  const int64_t tiles = (out_features + kTileRows - 1) / kTileRows;
  return tiles * ((in_features + kBlockFeatures - 1) / kBlockFeatures) * kTileBytes;
}

void pack_rows(cudaStream_t stream, const PackRows& rows) {
  check(rows.in_features % 8 == 0, "linear: in features must be a multiple of 8, got ", rows.in_features);
  check(rows.dtype == DType::kBF16 || rows.dtype == DType::kF32, "linear: weights come as float32 or bfloat16, got ",
        name_of(rows.dtype));
  const int pieces = rows.in_features / 8, groups = (rows.out_features + kTileRows - 1) / kTileRows * 2;
  const LaunchShape shape{.grid = dim3(rows.count, (pieces + 127) / 128), .block = dim3(128)};
  rows.dtype == DType::kBF16 ? launch(stream, shape, "pack_rows", pack_pieces<bf16>, rows, pieces, groups)
                             : launch(stream, shape, "pack_rows", pack_pieces<float>, rows, pieces, groups);
}

}  // namespace rtp_llm::cuda
