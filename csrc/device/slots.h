// Slots: per-sequence state on the device. Each running sequence owns one slot; kernels derive positions and KV
// addresses from it, so step n+1 can be launched before the host has read the tokens of step n.
#pragma once

#include <cstdint>

#include "device/form.h"
#include "tensor/tensor.h"

namespace rtp_llm {

// Added to the logit of a token.
struct TokenBias {
  int32_t token = 0;
  float bias = 0.0f;
};
inline constexpr int kMaxTokenBiases = 1024;  // of a slot

// Sampling parameters of a slot, plain data. `Ops::sample` reads it; the host writes it when a sequence gets its slot.
struct SamplingState {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  float min_p = 0.0f;
  int32_t top_k = 0;  // 0: off
  uint64_t seed = 0;
  uint32_t choice = 0;
  int32_t num_logprobs = -1;   // -1: none; 0: the sampled token's; n: and the n highest
  int32_t suppress_until = 0;  // output positions below this one may not emit suppressed tokens (min_tokens)
  int32_t num_suppressed = 0;
  int32_t has_token_words = 0;  // 1: the slot's token words and biases say something (device/token_rules.h)
  int32_t num_biases = 0;
  float repetition_penalty = 1.0f;  // of tokens of prompt and answer: divides a logit above 0, multiplies others
  float frequency_penalty = 0.0f;   // is taken off once for each time that the answer has the token
  float presence_penalty = 0.0f;    // is taken off if the answer has the token
  static constexpr int kMaxSuppressed = 32;
  int32_t suppressed[kMaxSuppressed] = {};  // EOS and stop token ids
};

// All in device memory; S = number of slots. The last one belongs to no sequence: it is the slot of padding rows, with
// seq_len 0, last_token 0 and a table whose every entry is the pool's scratch block. Kernels may compute padding rows
// (their KV lands in the scratch block), but write nothing into that slot.
struct Slots {
  Tensor last_token;                  // [S] i32: the token sampled last
  Tensor seq_len;                     // [S] i32: tokens whose KV is stored (or being stored by the running step)
  Tensor output_position;             // [S] i32: position of the next output token, 0 = first after the prompt
  Tensor block_tables;                // [S, max_blocks_per_sequence] i32, per KV group one table; one group today
  SamplingState* sampling = nullptr;  // [S]
  // Of slots whose sampling state has token words; both may be missing where none has. `sample` counts its token.
  Tensor token_words;           // [S, vocab] i32: bits of device/token_rules.h
  TokenBias* biases = nullptr;  // [S, kMaxTokenBiases], ascending by token

  int32_t padding_slot() const { return static_cast<int32_t>(seq_len.shape[0]) - 1; }
};

// What the host writes into one slot before a step. Applied by Ops::update_slots.
struct SlotUpdate {
  int32_t slot = 0;
  int32_t binds = 0;  // 1: the slot gets a new owner and the next four fields are written; 0: its table grows only
  int32_t last_token = 0;
  int32_t seq_len = 0;
  int32_t output_position = 0;
  // block_tables[slot][first_block + i] = blocks[first_id + i] for i < num_blocks; `blocks` is the list's.
  int32_t first_block = 0;
  int32_t num_blocks = 0;
  int32_t first_id = 0;
  // Where it binds and sampling.has_token_words: from word first_word of the list's on lie sampling.num_biases biases,
  // ascending by token, then the ids of the allowed tokens (none: all are), of the prompt's and of the answer's.
  int32_t first_word = 0;
  int32_t num_allowed = 0;
  int32_t num_prompt = 0;
  int32_t num_output = 0;
  SamplingState sampling{};

  int32_t num_words() const { return 2 * sampling.num_biases + num_allowed + num_prompt + num_output; }
};

// A run of rows of one sequence in a step. Row first_row + i has position seq_len[slot] + i.
struct Segment {
  int32_t slot = 0;
  int32_t first_row = 0;
  int32_t rows = 0;
  Form form = Form::kPrefill;
};

}  // namespace rtp_llm
