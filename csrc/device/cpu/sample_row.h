// SampleRow's work: from one row of logits to one token, in passes over the vocabulary.
//
// Everything is a function of the row and its sampling state: sums run in blocks of 1,024 in one order,
// sets are cut with ties by the lowest id, noise comes from the token id.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "device/cpu/vec_math.h"
#include "device/philox.h"
#include "device/slots.h"

namespace rtp_llm::cpu {

struct Candidate {
  float logit;
  int32_t id;
};

// The order of all cuts: highest logit first, ties by the lowest id.
inline bool before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Upper bound of the noise: -log(-log(1 - 2^-24)) = 16.6355.
inline constexpr float kMaxNoise = 16.7f;

// Gumbel noise of 16 token ids at one output position.
RTP_INLINE F32x16 gumbel_noise(const U32x16& ids, const SamplingState& state, uint32_t position) {
  U32x16 c0 = ids, c1 = splat_u32(position), c2 = splat_u32(state.choice);
  U32x16 c3 = splat_u32(static_cast<uint32_t>(NoisePurpose::kToken));
  auto key0 = static_cast<uint32_t>(state.seed), key1 = static_cast<uint32_t>(state.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    U32x16 high0, low0, high1, low1;
    multiply_wide(c0, kPhiloxMul0, high0, low0);
    multiply_wide(c2, kPhiloxMul1, high1, low1);
    c0 = high1 ^ c1 ^ splat_u32(key0);
    c1 = low1;
    c2 = high0 ^ c3 ^ splat_u32(key1);
    c3 = low0;
    key0 += kPhiloxWeyl0;
    key1 += kPhiloxWeyl1;
  }
  const F32x16 bits = to_float(bit_cast16<I32x16>(shift_right<9>(c0)));
  const F32x16 u = (bits + splat(0.5f)) * splat(0x1p-23f);
  return zero() - log(zero() - log(u));
}

// ---- Passes over the vocabulary ----------------------------------------------------------------

// 16 logits from `i`; beyond the vocabulary -inf.
RTP_INLINE F32x16 load_logits(const float* logits, int64_t i, int64_t vocab) {
  if (i + kLanes <= vocab) return load(logits + i);
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -kInfinity);
  std::memcpy(lanes, logits + i, static_cast<size_t>(vocab - i) * sizeof(float));
  return load(lanes);
}

// The highest logit that is a number; -inf if there is none.
inline float highest(const float* logits, int64_t vocab) {
  F32x16 top = splat(-kInfinity);
  for (int64_t i = 0; i < vocab; i += kLanes) top = max(load_logits(logits, i, vocab), top);
  return reduce_max(top);
}

// Lowest id whose logit is `value`; -1 if none.
inline int32_t first_id_of(const float* logits, int64_t vocab, float value) {
  for (int64_t i = 0; i < vocab; ++i)
    if (logits[i] == value) return static_cast<int32_t>(i);
  return -1;
}

// Sum of e^((x - top) / temperature) over logits with (x - top) / temperature >= floor.
inline double sum_of_exp(const float* logits, int64_t vocab, float top, float temperature, float floor) {
  constexpr int64_t kBlock = 1024;
  double total = 0.0;
  for (int64_t block = 0; block < vocab; block += kBlock) {
    F32x16 sum = zero();
    for (int64_t i = block; i < std::min(vocab, block + kBlock); i += kLanes) {
      const F32x16 depth = (load_logits(logits, i, vocab) - splat(top)) / splat(temperature);
      sum = sum + select(greater_equal(depth, splat(floor)), exp(depth), zero());
    }
    total += reduce_add(sum);
  }
  return total;
}

// Raw log_softmax: logit -> (logit - top) - log_sum. Where the highest logit is +inf: its limit, in which the tokens
// at +inf share the probability evenly and no other has any.
struct LogSoftmax {
  LogSoftmax(const float* logits, int64_t vocab)
      : top(highest(logits, vocab)), log_sum(log_scalar(static_cast<float>(sum(logits, vocab)))) {}
  float operator()(float logit) const { return (logit == top ? 0.0f : logit - top) - log_sum; }
  float top;
  float log_sum;

 private:
  double sum(const float* logits, int64_t vocab) const {
    return top == kInfinity ? static_cast<double>(std::count(logits, logits + vocab, top))
                            : sum_of_exp(logits, vocab, top, 1.0f, -kInfinity);
  }
};

// Writes the n highest of those with a probability above 0, descending; -1 ids fill the rest of `columns`.
inline void top_logprobs(const float* logits, int64_t vocab, const LogSoftmax& logprob, int n, int64_t columns,
                         int32_t* ids, float* values) {
  Candidate best[32];
  int count = 0;
  for (int64_t i = 0; n > 0 && i < vocab; i += kLanes) {
    const F32x16 x = load_logits(logits, i, vocab);
    if (count == n && !any(greater(x, splat(best[n - 1].logit)))) continue;
    for (int64_t id = i; id < std::min(vocab, i + kLanes); ++id) {
      const Candidate one{logits[id], static_cast<int32_t>(id)};
      if (!(logprob(one.logit) > -kInfinity) || (count == n && !before(one, best[n - 1]))) continue;
      if (count < n) ++count;
      int at = count - 1;
      for (; at > 0 && before(one, best[at - 1]); --at) best[at] = best[at - 1];
      best[at] = one;
    }
  }
  for (int64_t i = 0; i < columns; ++i) {
    ids[i] = i < count ? best[i].id : -1;
    values[i] = i < count ? logprob(best[i].logit) : 0.0f;
  }
}

// Logits with the tokens that may not be sampled set to -inf.
inline void mask_logits(const float* logits, int64_t vocab, const int32_t* allowed, const SamplingState& state,
                        bool suppress, float* to) {
  for (int64_t i = 0; i < vocab; ++i) {
    const bool keep = allowed == nullptr || (static_cast<uint32_t>(allowed[i / 32]) >> (i % 32) & 1u) != 0;
    to[i] = keep ? logits[i] : -kInfinity;
  }
  for (int32_t i = 0; suppress && i < state.num_suppressed; ++i)
    if (state.suppressed[i] >= 0 && state.suppressed[i] < vocab) to[state.suppressed[i]] = -kInfinity;
}

// ---- The kept set ------------------------------------------------------------------------------

// Temperature, and the cuts in the order min_p, top_k, top_p.
struct Cut {
  Cut(const SamplingState& state, float top_logit)
      : top(top_logit),
        temperature(state.temperature),
        floor(state.min_p > 0.0f ? log_scalar(state.min_p) : -kInfinity),
        top_k(state.top_k),
        top_p(state.top_p) {}
  bool keeps_all(int64_t vocab) const { return (top_k <= 0 || top_k >= vocab) && top_p >= 1.0f; }
  float depth(float logit) const { return (logit - top) / temperature; }
  float top;
  float temperature;
  float floor;  // lowest depth that min_p keeps
  int64_t top_k;
  float top_p;
};

// Candidates with depth >= lowest, in id order; returns their number.
inline int64_t gather(const float* logits, int64_t vocab, const Cut& cut, float lowest, Candidate* to) {
  int64_t count = 0;
  for (int64_t i = 0; i < vocab; i += kLanes) {
    const F32x16 x = load_logits(logits, i, vocab);
    const F32x16 depth = (x - splat(cut.top)) / splat(cut.temperature);
    if (!any(greater_equal(depth, splat(lowest)))) continue;
    for (int64_t id = i; id < std::min(vocab, i + kLanes); ++id)
      if (logits[id] > -kInfinity && cut.depth(logits[id]) >= lowest)
        to[count++] = {logits[id], static_cast<int32_t>(id)};
  }
  return count;
}

// Length of the shortest prefix of sorted candidates with at least top_p of `total`; 0 if there is
// none. A prefix of all candidates is always long enough if `complete`.
inline int64_t nucleus(const Candidate* sorted, int64_t count, const Cut& cut, double total, bool complete) {
  double mass = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    mass += exp_scalar(cut.depth(sorted[i].logit));
    if (mass >= static_cast<double>(cut.top_p) * total) return i + 1;
  }
  return complete ? count : 0;
}

// The kept candidates, sorted; returns their number. The search deepens until the cuts are decided,
// which changes the cost and not the set.
inline int64_t kept_candidates(const float* logits, int64_t vocab, const Cut& cut, Candidate* to) {
  const bool by_k = cut.top_k > 0 && cut.top_k < vocab;
  const double mass = by_k ? 0.0 : sum_of_exp(logits, vocab, cut.top, cut.temperature, cut.floor);
  for (float depth = -2.0f;; depth *= 2.0f) {
    const bool complete = depth <= cut.floor || depth < -128.0f;
    int64_t count = gather(logits, vocab, cut, complete ? cut.floor : depth, to);
    if (by_k) {
      if (count < cut.top_k && !complete) continue;
      if (count > cut.top_k) std::nth_element(to, to + cut.top_k, to + count, before);
      count = std::min(count, cut.top_k);
    }
    std::sort(to, to + count, before);
    if (cut.top_p >= 1.0f) return count;
    double total = mass;
    if (by_k) {
      total = 0.0;
      for (int64_t i = 0; i < count; ++i) total += exp_scalar(cut.depth(to[i].logit));
    }
    const int64_t length = nucleus(to, count, cut, total, complete || by_k);
    if (length > 0) return length;
  }
}

// ---- The draw ----------------------------------------------------------------------------------

// The best (value, id) seen: highest value above -inf, ties to the lowest id; -1 if there was none.
struct Best {
  void offer(float candidate, int32_t candidate_id) {
    if (candidate > value || (candidate == value && candidate_id < id)) {
      value = candidate;
      id = candidate_id;
    }
  }
  float value = -kInfinity;
  int32_t id = -1;
};

RTP_INLINE F32x16 scaled_logprob(const F32x16& logits, const LogSoftmax& logprob, float temperature) {
  return ((logits - splat(logprob.top)) - splat(logprob.log_sum)) / splat(temperature);
}

inline int32_t draw_from_all(const float* logits, int64_t vocab, const Cut& cut, const LogSoftmax& logprob,
                             const SamplingState& state, uint32_t position) {
  Best best;
  for (int64_t i = 0; i < vocab; i += kLanes) {
    const F32x16 x = load_logits(logits, i, vocab);
    const F32x16 scaled = scaled_logprob(x, logprob, cut.temperature);
    // Even the greatest noise could not lift these above the best: the result is the same.
    if (best.id >= 0 && !any(greater_equal(scaled + splat(kMaxNoise), splat(best.value)))) continue;
    const U32x16 ids = bit_cast16<U32x16>(lane_indices()) + splat_u32(static_cast<uint32_t>(i));
    const F32x16 depth = (x - splat(cut.top)) / splat(cut.temperature);
    const F32x16 noisy =
        select(greater_equal(depth, splat(cut.floor)), scaled + gumbel_noise(ids, state, position), splat(-kInfinity));
    float values[kLanes];
    store(values, noisy);
    for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, vocab - i); ++lane)
      best.offer(values[lane], static_cast<int32_t>(i + lane));
  }
  return best.id;
}

inline int32_t draw_from(const Candidate* kept, int64_t count, const Cut& cut, const LogSoftmax& logprob,
                         const SamplingState& state, uint32_t position) {
  Best best;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = std::min<int64_t>(kLanes, count - i);
    float logits[kLanes] = {};
    uint32_t ids[kLanes] = {};
    for (int64_t lane = 0; lane < n; ++lane) {
      logits[lane] = kept[i + lane].logit;
      ids[lane] = static_cast<uint32_t>(kept[i + lane].id);
    }
    float values[kLanes];
    store(values,
          scaled_logprob(load(logits), logprob, cut.temperature) + gumbel_noise(load_u32(ids), state, position));
    for (int64_t lane = 0; lane < n; ++lane) best.offer(values[lane], kept[i + lane].id);
  }
  return best.id;
}

// The token, or -1 if no allowed token has a logit that is a number above -inf.
inline int32_t choose_token(const float* logits, int64_t vocab, const LogSoftmax* logprob, const SamplingState& state,
                            uint32_t position, Candidate* workspace) {
  const float top = highest(logits, vocab);
  if (!(top > -kInfinity)) return -1;
  // +inf has all the probability at any temperature, and leaves the cuts nothing to compare.
  if (state.temperature == 0.0f || top == kInfinity) return first_id_of(logits, vocab, top);
  const Cut cut(state, top);
  const int32_t token = cut.keeps_all(vocab) ? draw_from_all(logits, vocab, cut, *logprob, state, position)
                                             : draw_from(workspace, kept_candidates(logits, vocab, cut, workspace), cut,
                                                         *logprob, state, position);
  // Arithmetic can leave nothing to compare (a temperature so low that everything is infinite).
  return token >= 0 ? token : first_id_of(logits, vocab, top);
}

}  // namespace rtp_llm::cpu
