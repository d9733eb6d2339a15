// sample: from rows of logits to tokens, in four kernels over (chunk of the vocabulary, row).
//
//   survey   a chunk's highest logit, its sum of exp, its highest logit that may come
//   draw     the row's log-sum from all surveys; a chunk's best by noise and, where asked for, its highest logits
//   cut      rows with top_k or top_p only, a CTA a row: the kept set by radix selection, then the draw over it
//   finish   a CTA a row: the token, its logprob, the highest; moves the slot
//
// Everything is a function of the row and its sampling state: chunks are merged in order, counts and masses of the
// cuts are integers (mass in units of 2^-32 of the highest's), noise comes from the token id (device/philox.h). The
// formulas are those of cpu/sample_row.h; sums are taken in another order, so a token differs from the CPU's only
// where two values agree to their last bits.
#include <algorithm>

#include "device/cuda/cuda_ops.h"
#include "device/cuda/launch.h"
#include "device/cuda/math.cuh"
#include "device/cuda/ptx.cuh"
#include "device/philox.h"
#include "device/token_rules.h"

namespace rtp_llm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 16;
constexpr int kChunk = kThreads * kPerThread;  // logits of a CTA
constexpr int kMergePairs = 8;                 // of the chunks' highest, that a thread of `finish` takes
constexpr int kMaxChunks = kMergePairs * kThreads / kMaxLogprobs;
static_assert(kMaxChunks <= kThreads);
constexpr int kCutThreads = 1024;
constexpr float kMassUnit = 4294967296.0f;  // 2^32

struct Pair {
  float value;
  int32_t id;
};

// The order of all cuts and draws: highest first, ties by the lowest id; id -1 is behind everything.
__device__ __forceinline__ bool before(const Pair& a, const Pair& b) {
  if (a.id < 0 || b.id < 0) return a.id >= 0 && b.id < 0;
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

struct Survey {
  float top;     // highest logit, -inf if none is a number
  float sum;     // of e^(logit - top)
  Pair allowed;  // the highest by which a token that may come is chosen, id -1: none
};

// One row's workspace.
struct RowSpace {
  Survey* surveys;  // [chunks]
  Pair* drawn;      // [chunks]
  Pair* highest;    // [chunks, kMaxLogprobs]
  Pair* cut;        // [1]: drawn from the kept set
};

struct SampleKernel {
  const float* logits;
  int64_t row_stride;
  int64_t vocab;
  const StepCounts* counts;  // a replayed step may have fewer rows than the grid
  const SampleRow* rows;
  const SamplingState* sampling;
  uint32_t* token_words;  // [S, vocab]
  const TokenBias* biases;
  const int32_t* allowed;  // [R, words] or null
  int64_t allowed_stride;
  int32_t* last_token;
  int32_t* output_position;
  int32_t* tokens;
  float* logprobs;
  int32_t* top_tokens;  // [R, columns] or null
  float* top_logprobs;
  int columns;
  int chunks;
  uint8_t* workspace;

  __device__ RowSpace space(int row) const {
    const int64_t bytes = row_bytes(chunks);
    auto* at = workspace + row * bytes;
    auto* surveys = reinterpret_cast<Survey*>(at);
    auto* drawn = reinterpret_cast<Pair*>(surveys + chunks);
    auto* highest = drawn + chunks;
    return {surveys, drawn, highest, highest + int64_t{chunks} * kMaxLogprobs};
  }
  static __host__ __device__ int64_t row_bytes(int64_t chunks) {
    return chunks * (sizeof(Survey) + sizeof(Pair) * (1 + kMaxLogprobs)) + sizeof(Pair);
  }
};

// A row as all kernels see it.
struct Row {
  __device__ Row(const SampleKernel& p, int index)
      : index(index),
        slot(p.rows[index].slot),
        logits(p.logits + p.rows[index].row * p.row_stride),
        allowed(p.allowed == nullptr ? nullptr : p.allowed + p.rows[index].row * p.allowed_stride),
        vocab(p.vocab),
        state(p.sampling[slot]),
        position(p.output_position[slot]),
        suppress(state.num_suppressed > 0 && position < state.suppress_until),
        words(state.has_token_words ? p.token_words + slot * p.vocab : nullptr),
        biases(p.biases + int64_t{slot} * kMaxTokenBiases) {}

  // Whether token `id` with this logit may come, for all that its word says.
  __device__ bool may_come(float logit, int64_t id) const {
    if (!(logit > -kInfinity)) return false;  // NaN too
    if (allowed != nullptr && (static_cast<uint32_t>(allowed[id / 32]) >> (id % 32) & 1u) == 0) return false;
    for (int i = 0; suppress && i < state.num_suppressed; ++i)
      if (state.suppressed[i] == id) return false;
    return true;
  }
  // What it is chosen by; -inf: it may not come.
  __device__ float chosen_by(float logit, int64_t id) const {
    if (!may_come(logit, id)) return -kInfinity;
    return words == nullptr ? logit : ruled_logit(logit, static_cast<int32_t>(id), words[id], state, biases);
  }
  // Whether some number is not what its token is chosen by.
  __device__ bool ruled() const { return allowed != nullptr || suppress || words != nullptr; }
  __device__ bool greedy() const { return state.temperature == 0.0f; }
  __device__ bool cuts() const { return (state.top_k > 0 && state.top_k < vocab) || state.top_p < 1.0f; }

  int index;
  int32_t slot;
  const float* logits;
  const int32_t* allowed;
  int64_t vocab;
  const SamplingState& state;
  int32_t position;
  bool suppress;
  uint32_t* words;  // null: none
  const TokenBias* biases;
};

__device__ __forceinline__ float gumbel_noise(const Row& row, int32_t id) {
  const float u = sampling_uniform(row.state.seed, static_cast<uint32_t>(id), static_cast<uint32_t>(row.position),
                                   row.state.choice);
  return -log_f32(-log_f32(u));
}

__device__ Pair better(const Pair& a, const Pair& b) { return before(b, a) ? b : a; }

__device__ Pair best_of_warp(Pair best) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2)
    best = better(best, {__shfl_xor_sync(~0u, best.value, lane), __shfl_xor_sync(~0u, best.id, lane)});
  return best;
}

// The best over the CTA, in every thread.
__device__ Pair best_of_cta(Pair best) {
  __shared__ Pair of_warp[32];
  best = best_of_warp(best);
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  best = of_warp[0];
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) best = better(best, of_warp[warp]);
  return best;
}

// This thread's logits of the chunk, lane-contiguous; beyond the vocabulary -inf.
__device__ __forceinline__ int64_t id_of(int chunk, int i) {
  return int64_t{chunk} * kChunk + i * kThreads + threadIdx.x;
}
__device__ __forceinline__ void load_chunk(const Row& row, int chunk, float (&values)[kPerThread]) {
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t id = id_of(chunk, i);
    values[i] = id < row.vocab ? row.logits[id] : -kInfinity;
  }
}

// The n best among this thread's pairs and the other threads', one after the other, to `to`; rest id -1.
template <int kPairs>
__device__ void keep_highest(Pair (&mine)[kPairs], int n, Pair* to) {
  for (int round = 0; round < n; ++round) {
    Pair best{-kInfinity, -1};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) best = better(best, mine[i]);
    best = best_of_cta(best);
#pragma unroll
    for (int i = 0; i < kPairs; ++i)
      if (mine[i].id == best.id) mine[i].id = -1;
    if (threadIdx.x == 0) to[round] = best;
  }
}

// log_softmax's two numbers, from all chunks in order. By all threads of the CTA. REQUIRES: chunks <= blockDim.x
struct LogSum {
  __device__ LogSum(const Survey* surveys, int chunks) {
    __shared__ float tops[kMaxChunks], sums[kMaxChunks], scales[kMaxChunks];
    const int mine = threadIdx.x;
    if (mine < chunks) tops[mine] = surveys[mine].top, sums[mine] = surveys[mine].sum;
    __syncthreads();
    for (int i = 0; i < chunks; ++i) top = fmaxf(top, tops[i]);
    if (mine < chunks) scales[mine] = exp_f32(tops[mine] - top);
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < chunks; ++i)
      if (tops[i] > -kInfinity) sum = __fmaf_rn(sums[i], scales[i], sum);
    log_sum = log_f32(sum);
  }
  __device__ float operator()(float logit) const { return __fsub_rn(__fsub_rn(logit, top), log_sum); }
  float top = -kInfinity;
  float log_sum;
};

// This thread's best of the chunk. Few rows have token words: apart, so that it takes no registers of the others.
__device__ Pair best_by_words(const Row& row, int chunk) {
  Pair best{-kInfinity, -1};
#pragma unroll 1
  for (int i = 0; i < kPerThread && id_of(chunk, i) < row.vocab; ++i) {
    const auto id = static_cast<int32_t>(id_of(chunk, i));
    const float chosen_by = row.chosen_by(row.logits[id], id);
    if (chosen_by > -kInfinity) best = better(best, {chosen_by, id});
  }
  return best;
}

__global__ void __launch_bounds__(kThreads) survey(const SampleKernel p) {
  let_successor_start();
  wait_for_predecessor();
  if (static_cast<int>(blockIdx.y) >= p.counts->samples) return;
  const Row row(p, blockIdx.y);
  const int chunk = blockIdx.x;
  float values[kPerThread];
  load_chunk(row, chunk, values);
  Pair raw{-kInfinity, -1}, allowed{-kInfinity, -1};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t id = id_of(chunk, i);
    if (!(values[i] > -kInfinity)) continue;
    const Pair one{values[i], static_cast<int32_t>(id)};
    raw = better(raw, one);
    if (row.words == nullptr && row.may_come(values[i], id)) allowed = better(allowed, one);
  }
  if (row.words != nullptr) allowed = best_by_words(row, chunk);
  raw = best_of_cta(raw);
  allowed = row.ruled() ? best_of_cta(allowed) : raw;
  // Each thread's sum in order, the threads by a butterfly, the warps in order: fixed by the vocabulary alone.
  __shared__ float of_warp[kThreads / 32];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i)
    if (values[i] > -kInfinity) sum = __fadd_rn(sum, exp_f32(values[i] - raw.value));
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, lane));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0.0f;
  for (float part : of_warp) sum = __fadd_rn(sum, part);
  p.space(row.index).surveys[chunk] = {raw.value, sum, allowed};
}

// Depth of a logit below the highest that may come, as the cuts measure it.
__device__ __forceinline__ float depth_of(float logit, float top, float temperature) {
  return __fdiv_rn(__fsub_rn(logit, top), temperature);
}

__device__ float lowest_depth(const SamplingState& state) {
  return state.min_p > 0.0f ? log_f32(state.min_p) : -kInfinity;
}

// By all threads of the CTA. REQUIRES: chunks <= blockDim.x
__device__ Pair best_allowed(const Survey* surveys, int chunks) {
  const int mine = threadIdx.x;
  return best_of_cta(mine < chunks ? surveys[mine].allowed : Pair{-kInfinity, -1});
}

// A chunk's best by noise.
__device__ void draw_from(const Row& row, int chunk, const LogSum& logprob, float top, float lowest,
                          const RowSpace& space) {
  float values[kPerThread];
  load_chunk(row, chunk, values);
  Pair best{-kInfinity, -1};
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t id = id_of(chunk, i);
    const float logit = row.chosen_by(values[i], id);
    if (!(logit > -kInfinity) || !(depth_of(logit, top, row.state.temperature) >= lowest)) continue;
    const float noisy =
        __fadd_rn(__fdiv_rn(logprob(logit), row.state.temperature), gumbel_noise(row, static_cast<int32_t>(id)));
    if (noisy > -kInfinity) best = better(best, {noisy, static_cast<int32_t>(id)});
  }
  best = best_of_cta(best);
  if (threadIdx.x == 0) space.drawn[chunk] = best;
}

__global__ void __launch_bounds__(kThreads) draw(const SampleKernel p) {
  let_successor_start();
  wait_for_predecessor();
  if (static_cast<int>(blockIdx.y) >= p.counts->samples) return;
  const Row row(p, blockIdx.y);
  const bool draws = !row.greedy() && !row.cuts();
  const int highest = row.state.num_logprobs;
  if (!draws && highest <= 0) return;
  const RowSpace space = p.space(row.index);
  if (draws) {
    const LogSum logprob(space.surveys, p.chunks);
    const float top = best_allowed(space.surveys, p.chunks).value, lowest = lowest_depth(row.state);
    for (int chunk = blockIdx.x; chunk < p.chunks; chunk += gridDim.x)
      draw_from(row, chunk, logprob, top, lowest, space);
  }
  if (highest <= 0) return;
  for (int chunk = blockIdx.x; chunk < p.chunks; chunk += gridDim.x) {
    float values[kPerThread];
    load_chunk(row, chunk, values);
    Pair mine[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t id = id_of(chunk, i);
      mine[i] = {values[i], values[i] > -kInfinity ? static_cast<int32_t>(id) : -1};
    }
    keep_highest(mine, highest, space.highest + int64_t{chunk} * kMaxLogprobs);
  }
}

// ---- The cuts
// --------------------------------------------------------------------------------------------------------

// Logits as unsigned numbers of the same order.
__device__ __forceinline__ uint32_t ordered(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// What radix selection counts: how many, and how much probability.
struct Bins {
  uint32_t count[256];
  unsigned long long mass[256];
};

// A kept set: all keys above `key`, and of those equal to it the lowest ids, up to `last_id`.
struct Kept {
  uint32_t key = 0;
  int64_t last_id = INT64_MAX;
  __device__ bool operator()(uint32_t one, int64_t id) const { return one > key || (one == key && id <= last_id); }
};

struct Cutter {
  const Row& row;
  float top;
  float lowest;
  Bins& bins;
  unsigned long long* shared_words;  // [4]

  // Calls visit(key, mass unit, id) for each candidate of this thread.
  template <class Visit>
  __device__ void for_candidates(const Kept& kept, Visit visit) {
    for (int64_t id = threadIdx.x; id < row.vocab; id += blockDim.x) {
      const float logit = row.chosen_by(row.logits[id], id);
      if (!(logit > -kInfinity)) continue;
      const float depth = depth_of(logit, top, row.state.temperature);
      if (!(depth >= lowest)) continue;
      const uint32_t key = ordered(logit);
      if (kept(key, id)) visit(key, depth, id);
    }
  }

  static __device__ unsigned long long mass_of(float depth) {
    return static_cast<unsigned long long>(__fmul_rn(exp_f32(depth), kMassUnit));
  }

  __device__ unsigned long long total_mass(const Kept& kept) {
    __syncthreads();
    if (threadIdx.x == 0) shared_words[0] = 0;
    __syncthreads();
    unsigned long long mass = 0;
    for_candidates(kept, [&](uint32_t, float depth, int64_t) { mass += mass_of(depth); });
    for (int lane = 16; lane > 0; lane /= 2) mass += __shfl_xor_sync(~0u, mass, lane);
    if (threadIdx.x % 32 == 0) atomicAdd(&shared_words[0], mass);
    __syncthreads();
    return shared_words[0];
  }

  // The shortest prefix of the kept candidates, in the order of all cuts, with at least `count` members (kByCount) or
  // at least `mass`: from the highest byte of the key to the lowest, then by id among equal keys.
  template <bool kByCount>
  __device__ Kept shortest_prefix(const Kept& from, unsigned long long needed) {
    uint32_t prefix = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
      __syncthreads();
      for (int bin = threadIdx.x; bin < 256; bin += blockDim.x) bins.count[bin] = 0, bins.mass[bin] = 0;
      __syncthreads();
      for_candidates(from, [&](uint32_t key, float depth, int64_t) {
        if (shift < 24 && key >> (shift + 8) != prefix >> (shift + 8)) return;
        const uint32_t bin = key >> shift & 255u;
        atomicAdd(&bins.count[bin], 1u);
        if constexpr (!kByCount) atomicAdd(&bins.mass[bin], mass_of(depth));
      });
      __syncthreads();
      if (threadIdx.x == 0) {
        int bin = 255;
        int lowest_filled = 0;
        for (; bin >= 0; --bin) {
          if (bins.count[bin] == 0) continue;
          lowest_filled = bin;
          const unsigned long long here = kByCount ? bins.count[bin] : bins.mass[bin];
          if (here >= needed) break;
          needed -= here;
        }
        if (bin < 0) bin = lowest_filled, needed = ~0ull;  // all are needed
        shared_words[0] = prefix | static_cast<uint32_t>(bin) << shift;
        shared_words[1] = needed;
        shared_words[2] = bins.count[bin];
      }
      __syncthreads();
      prefix = static_cast<uint32_t>(shared_words[0]);
      needed = shared_words[1];
    }
    // All of the last bin have this key; each has the same mass.
    const unsigned long long ties = shared_words[2];
    unsigned long long taken = ties;
    if (needed != ~0ull) {
      unsigned long long each = 1;
      if constexpr (!kByCount) {
        const float logit = prefix & 0x80000000u ? __uint_as_float(prefix & 0x7fffffffu) : __uint_as_float(~prefix);
        each = mass_of(depth_of(logit, top, row.state.temperature));
      }
      if (each > 0) taken = min(ties, (needed + each - 1) / each);
    }
    Kept kept{prefix, from.key == prefix ? from.last_id : INT64_MAX};
    if (taken < ties) kept.last_id = id_of_tie(from, prefix, taken);
    return kept;
  }

  // The id of the n-th candidate, from 1, whose key is `key`.
  __device__ int64_t id_of_tie(const Kept& from, uint32_t key, unsigned long long n) {
    unsigned long long seen = 0;
    for (int64_t first = 0; first < row.vocab; first += blockDim.x) {
      const int64_t id = first + threadIdx.x;
      bool tie = false;
      if (id < row.vocab) {
        const float logit = row.chosen_by(row.logits[id], id);
        tie = logit > -kInfinity && ordered(logit) == key && depth_of(logit, top, row.state.temperature) >= lowest &&
              from(key, id);
      }
      const unsigned of_warp = __ballot_sync(~0u, tie);
      __syncthreads();
      if (threadIdx.x % 32 == 0) bins.count[threadIdx.x / 32] = __popc(of_warp);
      __syncthreads();
      unsigned before_me = 0, all = 0;
      for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
        if (warp < threadIdx.x / 32) before_me += bins.count[warp];
        all += bins.count[warp];
      }
      before_me += __popc(of_warp & ((1u << threadIdx.x % 32) - 1));
      if (tie && seen + before_me + 1 == n) shared_words[3] = static_cast<unsigned long long>(id);
      seen += all;
      if (seen >= n) break;
    }
    __syncthreads();
    return static_cast<int64_t>(shared_words[3]);
  }
};

__global__ void __launch_bounds__(kCutThreads) cut(const SampleKernel p) {
  __shared__ Bins bins;
  __shared__ unsigned long long words[4];
  let_successor_start();
  wait_for_predecessor();
  if (static_cast<int>(blockIdx.x) >= p.counts->samples) return;
  const Row row(p, blockIdx.x);
  if (row.greedy() || !row.cuts()) return;
  const RowSpace space = p.space(row.index);
  const float top = best_allowed(space.surveys, p.chunks).value;
  Cutter cutter{row, top, lowest_depth(row.state), bins, words};
  Kept kept;
  if (top > -kInfinity && row.state.top_k > 0 && row.state.top_k < row.vocab)
    kept = cutter.shortest_prefix<true>(kept, row.state.top_k);
  if (top > -kInfinity && row.state.top_p < 1.0f) {
    const double share = static_cast<double>(row.state.top_p) * static_cast<double>(cutter.total_mass(kept));
    kept = cutter.shortest_prefix<false>(kept, max(1ull, static_cast<unsigned long long>(ceil(share))));
  }
  const LogSum logprob(space.surveys, p.chunks);
  Pair best{-kInfinity, -1};
  cutter.for_candidates(kept, [&](uint32_t, float, int64_t id) {
    const float noisy = __fadd_rn(__fdiv_rn(logprob(row.chosen_by(row.logits[id], id)), row.state.temperature),
                                  gumbel_noise(row, static_cast<int32_t>(id)));
    if (noisy > -kInfinity) best = better(best, {noisy, static_cast<int32_t>(id)});
  });
  best = best_of_cta(best);
  if (threadIdx.x == 0) *space.cut = best;
}

__global__ void __launch_bounds__(kThreads) finish(const SampleKernel p) {
  let_successor_start();
  wait_for_predecessor();
  if (static_cast<int>(blockIdx.x) >= p.counts->samples) return;
  const Row row(p, blockIdx.x);
  const RowSpace space = p.space(row.index);
  const int wanted = row.state.num_logprobs;
  __shared__ Pair highest[kMaxLogprobs];
  if (wanted > 0 && p.top_tokens != nullptr) {
    Pair mine[kMergePairs];
#pragma unroll
    for (int i = 0; i < kMergePairs; ++i) {
      const int at = threadIdx.x + i * kThreads;
      mine[i] = at < p.chunks * kMaxLogprobs && at % kMaxLogprobs < wanted ? space.highest[at] : Pair{-kInfinity, -1};
    }
    keep_highest(mine, wanted, highest);
    __syncthreads();
  }
  int32_t token = best_allowed(space.surveys, p.chunks).id;
  if (token >= 0 && !row.greedy()) {
    Pair best{-kInfinity, -1};
    if (row.cuts())
      best = *space.cut;
    else
      best = best_of_cta(threadIdx.x < p.chunks ? space.drawn[threadIdx.x] : best);
    if (best.id >= 0) token = best.id;  // else arithmetic left nothing to compare: the highest
  }
  float of_token = 0.0f;
  if (wanted >= 0) {
    const LogSum logprob(space.surveys, p.chunks);
    if (token >= 0) of_token = logprob(row.logits[token]);
    for (int i = threadIdx.x; i < wanted && p.top_tokens != nullptr; i += kThreads)
      highest[i].value = logprob(highest[i].value);
    __syncthreads();
  }
  for (int i = threadIdx.x; p.top_tokens != nullptr && i < p.columns; i += kThreads) {
    const bool given = i < wanted && highest[i].id >= 0;
    p.top_tokens[row.index * p.columns + i] = given ? highest[i].id : -1;
    p.top_logprobs[row.index * p.columns + i] = given ? highest[i].value : 0.0f;
  }
  if (threadIdx.x != 0) return;
  p.tokens[row.index] = token;
  p.logprobs[row.index] = of_token;
  if (token < 0) return;
  p.last_token[row.slot] = token;
  p.output_position[row.slot] += 1;
  if (row.words != nullptr) ++row.words[token];
}

int64_t chunks_of(int64_t vocab) { return (vocab + kChunk - 1) / kChunk; }

}  // namespace

int64_t CudaOps::sample_workspace_bytes(int64_t max_rows, int64_t vocab) const {
  return max_rows * SampleKernel::row_bytes(chunks_of(vocab));
}

void CudaOps::sample(const SampleArgs& args) {
  const auto rows = static_cast<int64_t>(args.step->sample_rows.size());
  if (rows == 0) return;
  const int64_t vocab = args.logits.shape[1], chunks = chunks_of(vocab);
  const Slots& slots = *args.step->slots;
  check(args.logits.dtype == DType::kF32, "sample: logits must be float32, got ", name_of(args.logits.dtype));
  check(chunks <= kMaxChunks, "sample: a vocabulary of ", vocab, " tokens, at most ", kMaxChunks * kChunk,
        " are supported");
  check(args.tokens.numel() >= rows && args.logprobs.numel() >= rows, "sample: outputs have ", args.tokens.numel(),
        " rows, need ", rows);
  check(args.workspace.numel() >= sample_workspace_bytes(rows, vocab), "sample: workspace has ", args.workspace.numel(),
        " bytes, need ", sample_workspace_bytes(rows, vocab));
  check(args.allowed.empty() || args.allowed.shape[1] >= (vocab + 31) / 32, "sample: bitmask has ",
        args.allowed.shape[1], " words a row, need ", (vocab + 31) / 32);
  check(slots.token_words.empty() || slots.token_words.shape[1] == vocab, "sample: token words of ",
        slots.token_words.empty() ? 0 : slots.token_words.shape[1], " tokens, the vocabulary has ", vocab);
  const SampleKernel p{.logits = args.logits.as<const float>(),
                       .row_stride = args.logits.stride[0],
                       .vocab = vocab,
                       .counts = args.step->device_counts,
                       .rows = args.step->device_sample_rows,
                       .sampling = slots.sampling,
                       .token_words = slots.token_words.as<uint32_t>(),
                       .biases = slots.biases,
                       .allowed = args.allowed.as<const int32_t>(),
                       .allowed_stride = args.allowed.empty() ? 0 : args.allowed.stride[0],
                       .last_token = slots.last_token.as<int32_t>(),
                       .output_position = slots.output_position.as<int32_t>(),
                       .tokens = args.tokens.as<int32_t>(),
                       .logprobs = args.logprobs.as<float>(),
                       .top_tokens = args.top_tokens.as<int32_t>(),
                       .top_logprobs = args.top_logprobs.as<float>(),
                       .columns = args.top_tokens.empty() ? 0 : static_cast<int>(args.top_tokens.shape[1]),
                       .chunks = static_cast<int>(chunks),
                       .workspace = args.workspace.as<uint8_t>()};
  const LaunchShape by_chunk{.grid = dim3(chunks, rows), .block = dim3(kThreads)};
  launch(stream(), by_chunk, "sample: survey", survey, p);
  // Of many rows mostly greedy ones: fewer CTAs that have nothing to do.
  const LaunchShape by_chunks{.grid = dim3(rows <= 16 ? chunks : std::min<int64_t>(chunks, 8), rows),
                              .block = dim3(kThreads)};
  launch(stream(), by_chunks, "sample: draw", draw, p);
  launch(stream(), {.grid = dim3(rows), .block = dim3(kCutThreads)}, "sample: cut", cut, p);
  launch(stream(), {.grid = dim3(rows), .block = dim3(kThreads)}, "sample: finish", finish, p);
}

}  // namespace rtp_llm::cuda
