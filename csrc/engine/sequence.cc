#include "engine/sequence.h"

#include <algorithm>

#include "kv/kv_layout.h"

namespace rtp_llm {

Sequence::Sequence(SequenceSpec given, Role role, BlockHasher empty_hasher, int max_model_len)
    : spec(std::move(given)),
      role(role),
      tokens(spec.prompt),
      num_prompt(static_cast<int>(spec.prompt.size())),
      hasher(std::move(empty_hasher)) {
  const int64_t longest = std::min<int64_t>(max_model_len, int64_t{num_prompt} + spec.sampling.max_tokens);
  max_len = role == Role::kSender ? num_prompt + static_cast<int>(spec.output.size()) + 1 : static_cast<int>(longest);
  tokens.reserve(max_len);
  blocks.reserve(blocks_for(max_len, hasher.block_tokens()));
  hasher.reserve(max_len);
  hasher.append(spec.prompt, Form::kPrefill);
  tokens.insert(tokens.end(), spec.output.begin(), spec.output.end());
  hasher.append(spec.output, Form::kDecode);
}

void Sequence::append(int32_t token) {
  tokens.push_back(token);
  hasher.append({&token, 1}, Form::kDecode);
}

}  // namespace rtp_llm
