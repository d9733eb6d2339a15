// The checksum of device/checksum.h over one block: a warp a vector, lanes over its pairs of words; sums are integers.
#include "device/cuda/checksum.h"

#include "device/checksum.h"
#include "device/cuda/cuda_check.h"
#include "device/cuda/cuda_ops.h"
#include "device/cuda/ptx.cuh"

namespace rtp_llm::cuda {
namespace {

constexpr int kWarps = 8;
__constant__ uint32_t table[kMaxChecksumWords];

__global__ void __launch_bounds__(32 * kWarps) sum_vectors(const ChecksumVectors p, unsigned long long* sum) {
  const int vectors = 2 * p.heads * p.tokens, lane = threadIdx.x % 32;
  unsigned long long total = 0;
  for (int i = blockIdx.x * kWarps + threadIdx.x / 32; i < vectors; i += gridDim.x * kWarps) {
    const int token = i % p.tokens, head = i / p.tokens % p.heads, plane = i / p.tokens / p.heads;
    const auto* at = reinterpret_cast<const uint2*>(p.block + p.plane_offset[plane] + head * p.head_stride +
                                                    (p.first_token + token) * p.token_stride);
    unsigned long long h = 0;
    for (int pair = lane; pair < p.words / 2; pair += 32) {
      const uint2 words = at[pair];
      h += static_cast<unsigned long long>(words.x + table[2 * pair]) * (words.y + table[2 * pair + 1]);
    }
    for (int other = 16; other > 0; other /= 2) h += __shfl_xor_sync(~0u, h, other);
    const ChecksumKey key{p.group, p.layer, plane, head, p.first_position + token};
    if (lane == 0) total += mix64(h + pack_checksum_key(key));
  }
  if (lane == 0 && total != 0) atomicAdd(sum, total);
}

}  // namespace

ChecksumSum::ChecksumSum(CudaDevice& device) : sum_(device.allocate(sizeof(uint64_t), "checksum")) {
  cuda_check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "checksum");
  cuda_check(cudaMemcpyToSymbol(table, kChecksumTable.data(), sizeof(kChecksumTable)), "checksum");
}

ChecksumSum::~ChecksumSum() { cudaStreamDestroy(stream_); }

uint64_t ChecksumSum::of(const ChecksumVectors& vectors) {
  const std::lock_guard lock(mutex_);
  uint64_t sum = 0;
  auto* on_device = static_cast<unsigned long long*>(sum_.data());
  cuda_check(cudaMemsetAsync(on_device, 0, sizeof sum, stream_), "checksum");
  sum_vectors<<<32, 32 * kWarps, 0, stream_>>>(vectors, on_device);
  cuda_check(cudaGetLastError(), "checksum");
  cuda_check(cudaMemcpyAsync(&sum, on_device, sizeof sum, cudaMemcpyDefault, stream_), "checksum");
  cuda_check(cudaStreamSynchronize(stream_), "checksum");
  return sum;
}

uint64_t CudaOps::checksum(const ChecksumArgs& args) const {
  const KvView& kv = args.kv;
  check(args.block >= 0 && args.block < kv.num_blocks, "checksum: block ", args.block, " out of range, pool has ",
        kv.num_blocks);
  check(args.first_token >= 0 && args.tokens >= 0 && args.first_token + args.tokens <= kv.block_tokens,
        "checksum: tokens [", args.first_token, ", ", args.first_token + args.tokens, ") out of range, a block has ",
        kv.block_tokens);
  const int64_t bytes = kv.head_dim * size_of(kv.dtype);
  check(bytes % 8 == 0 && bytes / 4 <= kMaxChecksumWords, "checksum: vectors of ", bytes, " bytes are not supported");
  if (args.tokens == 0) return 0;
  device_.bind_thread();
  const ChecksumVectors vectors{.block = kv.base + args.block * kv.block_stride,
                                .plane_offset = {kv.plane_offset[0], kv.plane_offset[1]},
                                .head_stride = kv.head_stride,
                                .token_stride = kv.token_stride,
                                .heads = kv.num_heads,
                                .words = static_cast<int>(bytes / 4),
                                .group = args.group,
                                .layer = args.layer,
                                .first_token = args.first_token,
                                .tokens = args.tokens,
                                .first_position = args.first_position};
  return checksum_->of(vectors);
}

}  // namespace rtp_llm::cuda
