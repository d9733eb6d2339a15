// The checksum of device/checksum.h over a block, 64 bytes a step.
#include "device/checksum.h"

#include <algorithm>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/vec.h"

namespace rtp_llm::cpu {
namespace {

// h of a vector whose bytes are a multiple of 64.
uint64_t hash_vector(const uint8_t* vector, int64_t bytes) {
#if defined(RTP_CPU_AVX512)
  __m512i sum = _mm512_setzero_si512();
  for (int64_t i = 0; i < bytes; i += 64) {
    const __m512i words = _mm512_loadu_si512(vector + i);
    const __m512i shifted = _mm512_add_epi32(words, _mm512_loadu_si512(kChecksumTable.data() + i / 4));
    sum = _mm512_add_epi64(sum, _mm512_mul_epu32(shifted, _mm512_srli_epi64(shifted, 32)));
  }
  alignas(64) uint64_t lanes[8];
  _mm512_store_si512(lanes, sum);
#elif defined(RTP_CPU_AVX2)
  __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int64_t i = 0; i < bytes; i += 32) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(vector + i));
    const __m256i shifted =
        _mm256_add_epi32(words, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kChecksumTable.data() + i / 4)));
    __m256i& sum = sums[i / 32 % 2];
    sum = _mm256_add_epi64(sum, _mm256_mul_epu32(shifted, _mm256_srli_epi64(shifted, 32)));
  }
  alignas(64) uint64_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums[0]);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 4), sums[1]);
#else
  uint64_t lanes[8] = {};
  for (int64_t i = 0; i < bytes; i += 64) {
    uint32_t words[16];
    std::memcpy(words, vector + i, sizeof(words));
    for (int lane = 0; lane < 8; ++lane)
      lanes[lane] += uint64_t{words[2 * lane] + kChecksumTable[i / 4 + 2 * lane]} *
                     uint64_t{words[2 * lane + 1] + kChecksumTable[i / 4 + 2 * lane + 1]};
  }
#endif
  uint64_t total = 0;
  for (uint64_t lane : lanes) total += lane;
  return total;
}

void check_args(const ChecksumArgs& args) {
  const KvView& kv = args.kv;
  check(args.block >= 0 && args.block < kv.num_blocks, "checksum: block ", args.block, " out of range, pool has ",
        kv.num_blocks);
  check(args.first_token >= 0 && args.tokens >= 0 && args.first_token + args.tokens <= kv.block_tokens,
        "checksum: tokens [", args.first_token, ", ", args.first_token + args.tokens, ") out of range, a block has ",
        kv.block_tokens);
  check(kv.token_stride <= 4 * kMaxChecksumWords, "checksum: a vector has at most ", 4 * kMaxChecksumWords,
        " bytes, got ", kv.token_stride);
  check(args.group >= 0 && args.group < (1 << 8) && args.layer >= 0 && args.layer < (1 << 10) &&
            kv.num_heads <= (1 << 10) && args.first_position >= 0 &&
            args.first_position + args.tokens <= (int64_t{1} << 32),
        "checksum: key out of range: group ", args.group, ", layer ", args.layer, ", heads ", kv.num_heads,
        ", position ", args.first_position);
}

}  // namespace

uint64_t CpuOps::checksum(const ChecksumArgs& args) const {
  check_args(args);
  const KvView& kv = args.kv;
  const int64_t bytes = int64_t{kv.head_dim} * size_of(kv.dtype);
  uint64_t total = 0;
  for (int plane = 0; plane < 2; ++plane)
    for (int head = 0; head < kv.num_heads; ++head) {
      const uint8_t* vector = kv.base + args.block * kv.block_stride + kv.plane_offset[plane] + head * kv.head_stride +
                              args.first_token * kv.token_stride;
      uint64_t key = pack_checksum_key(
          {.group = args.group, .layer = args.layer, .plane = plane, .head = head, .position = args.first_position});
      for (int i = 0; i < args.tokens; ++i, ++key, vector += kv.token_stride)
        total += bytes % 64 == 0 ? mix64(hash_vector(vector, bytes) + key) : checksum_of_vector(vector, bytes, key);
    }
  return total;
}

}  // namespace rtp_llm::cpu
