// EngineConfig: what an engine is given; the parts of csrc/engine read it, Engine checks it.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/dtype.h"

namespace rtp_llm {

struct EngineConfig {
  int64_t max_num_batched_tokens = 512;  // rows of a step
  int32_t max_num_seqs = 64;             // slots
  int32_t max_model_len = 2048;          // prompt + output
  int32_t block_tokens = 16;
  int64_t kv_pool_bytes = 0;  // 0: num_kv_blocks decides
  int32_t num_kv_blocks = 0;  // 0: kv_pool_bytes decides
  DType kv_dtype = DType::kF32;
  bool enable_prefix_caching = true;
  int32_t layers_per_message = 4;  // layers of one handover message
  double itl_target_s = 0.05;      // a step that has decodes gives prefill only the time that is left
  std::vector<int32_t> eos_token_ids;

  // Most rows of a step: prefill's, and one for each sequence that decodes.
  int64_t max_step_rows() const { return max_num_batched_tokens + max_num_seqs; }
};

}  // namespace rtp_llm
