// PagedAttention: which kernel computes what.
#include "device/cuda/attention.h"

#include "device/cuda/attention_shapes.h"

namespace rtp_llm::cuda {

void check_attention(const AttentionProblem& problem) {
  const KvView& kv = problem.kv;
  check(kv.dtype == DType::kBF16, "attention: the KV pool must be bfloat16, got ", name_of(kv.dtype));
  check(kv.num_heads > 0 && problem.num_heads > 0 && problem.num_heads % kv.num_heads == 0,
        "attention: ", problem.num_heads, " query heads for ", kv.num_heads, " KV heads");
  check(kv.head_dim > 0 && kv.head_dim % 2 == 0 && kv.head_dim <= kMaxAnyDim,
        "attention: head_dim must be even and at most ", kMaxAnyDim, ", got ", kv.head_dim);
  check(kv.block_tokens > 0 && kv.block_tokens % 16 == 0, "attention: blocks must have a multiple of 16 tokens, got ",
        kv.block_tokens);
  check(problem.q_stride % 8 == 0 && problem.out_stride % 8 == 0,
        "attention: rows must be 16-byte aligned, strides are ", problem.q_stride, " and ", problem.out_stride);
}

PagedAttention::PagedAttention(int major, int num_sms, uint32_t* counters)
    : major_(major), num_sms_(num_sms), counters_(counters) {
  prepare_decode(major);
  prepare_prefill_plain();
  if (major == 9) prepare_prefill_wgmma();
}

int64_t PagedAttention::counter_bytes() { return (kMaxShares + 2) * int64_t{sizeof(uint32_t)}; }

void PagedAttention::prefill(cudaStream_t stream, const AttentionProblem& problem,
                             const PrefillSegments& segments) const {
  check_attention(problem);
  if (!has_tiles(problem.kv.head_dim)) return any_dim(stream, problem, segments.rows);
  if (major_ == 9) return prefill_wgmma(stream, num_sms_, problem, segments, counters_ + kMaxShares);
  prefill_plain(stream, problem, segments);
}

}  // namespace rtp_llm::cuda
