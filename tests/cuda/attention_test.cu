// Attention of the CUDA backend: checks and times. Needs a GPU; prints a line a check, exit status 1 if one failed.
//
//   attention_test small           every kernel on small shapes, for compute-sanitizer
//   attention_test check           against fp64, and bit by bit over forms, schedules, chunks, blocks and orders
//   attention_test decode          µs a layer, heads of Qwen3-8B
//   attention_test prefill         TFLOP/s
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "device/cuda/attention.h"
#include "device/cuda/cuda_check.h"
#include "device/cuda/ptx.cuh"
#include "device/cuda/qkv_rope_store.h"

namespace rtp_llm::cuda {
namespace {

int failures = 0;

void report(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  std::fflush(stdout);
  if (!good) ++failures;
}

// ---- Device memory -------------------------------------------------------------------------------------------------

template <class T>
class Array {
 public:
  explicit Array(int64_t count = 0) { resize(count); }
  Array(const std::vector<T>& from) : Array(static_cast<int64_t>(from.size())) { *this = from; }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { cudaFree(data_); }
  void resize(int64_t count) {
    cudaFree(data_);
    data_ = nullptr;
    count_ = count;
    if (count > 0) cuda_check(cudaMalloc(&data_, static_cast<size_t>(count) * sizeof(T)), "cudaMalloc");
  }
  Array& operator=(const std::vector<T>& from) {
    if (static_cast<int64_t>(from.size()) > count_) resize(static_cast<int64_t>(from.size()));
    cuda_check(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
    return *this;
  }
  std::vector<T> host() const {
    std::vector<T> to(static_cast<size_t>(count_));
    cuda_check(cudaMemcpy(to.data(), data_, to.size() * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return to;
  }
  void fill(int byte) { cuda_check(cudaMemset(data_, byte, static_cast<size_t>(count_) * sizeof(T)), "fill"); }
  T* data() const { return data_; }
  int64_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
};

// ---- Inputs: a function of (seed, sequence, position, head, dim) alone ----------------------------------------------

__device__ float uniform(uint32_t seed, uint32_t a, uint32_t b, uint32_t c) {
  uint32_t x = seed * 0x9e3779b9u + a * 0x85ebca6bu + b * 0xc2b2ae35u + c * 0x27d4eb2fu;
  for (int round = 0; round < 2; ++round) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
  }
  x ^= x >> 16;
  return (static_cast<float>(x >> 8) * (1.0f / 8388608.0f) - 1.0f) * 1.7320508f;
}

// Everything is NaN first; then positions below stored[sequence] get their values.
__global__ void fill_pool(KvView kv, const int32_t* tables, int64_t table_stride, const int32_t* stored,
                          uint32_t seed) {
  const int sequence = blockIdx.x;
  for (int position = blockIdx.y; position < stored[sequence]; position += gridDim.y)
    for (int i = threadIdx.x; i < 2 * kv.num_heads * kv.head_dim; i += blockDim.x) {
      const int plane = i / (kv.num_heads * kv.head_dim), head = i / kv.head_dim % kv.num_heads, d = i % kv.head_dim;
      auto* to = reinterpret_cast<bf16*>(
          kv.base + tables[sequence * table_stride + position / kv.block_tokens] * kv.block_stride +
          kv.plane_offset[plane] + head * kv.head_stride + position % kv.block_tokens * kv.token_stride);
      to[d] = __float2bfloat16_rn(uniform(seed + 1 + plane, sequence, position, head * 1024 + d));
    }
}

__global__ void fill_rows(bf16* to, int64_t stride, int width, const int32_t* row_slot, const int32_t* row_offset,
                          const int32_t* seq_len, uint32_t seed) {
  const int row = blockIdx.x, slot = row_slot[row], position = seq_len[slot] + row_offset[row];
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    to[row * stride + i] = __float2bfloat16_rn(uniform(seed, slot, position, i));
}

// ---- fp64 ----------------------------------------------------------------------------------------------------------

__global__ void reference(AttentionProblem p, const int32_t* row_slot, const int32_t* row_offset, double* scores,
                          int max_context, double* out) {
  const int row = blockIdx.x, head = blockIdx.y, slot = row_slot[row];
  const int context = p.seq_len[slot] + row_offset[row] + 1, kv_head = head / (p.num_heads / p.kv.num_heads);
  double* s = scores + (int64_t{row} * p.num_heads + head) * max_context;
  const auto at = [&](int plane, int position) {
    return reinterpret_cast<const bf16*>(
        p.kv.base + p.block_tables[slot * p.block_table_stride + position / p.kv.block_tokens] * p.kv.block_stride +
        p.kv.plane_offset[plane] + kv_head * p.kv.head_stride + position % p.kv.block_tokens * p.kv.token_stride);
  };
  const bf16* q = p.q + row * p.q_stride + head * p.kv.head_dim;
  for (int position = threadIdx.x; position < context; position += blockDim.x) {
    double sum = 0;
    for (int d = 0; d < p.kv.head_dim; ++d)
      sum += static_cast<double>(__bfloat162float(q[d])) * static_cast<double>(__bfloat162float(at(0, position)[d]));
    s[position] = sum * p.scale;
  }
  __syncthreads();
  double highest = -1e300, total = 0;
  for (int position = 0; position < context; ++position) highest = fmax(highest, s[position]);
  for (int position = 0; position < context; ++position) total += exp(s[position] - highest);
  for (int d = threadIdx.x; d < p.kv.head_dim; d += blockDim.x) {
    double sum = 0;
    for (int position = 0; position < context; ++position)
      sum += exp(s[position] - highest) * static_cast<double>(__bfloat162float(at(1, position)[d]));
    out[(int64_t{row} * p.num_heads + head) * p.kv.head_dim + d] = sum / total;
  }
}

// ---- Sequences in a pool ------------------------------------------------------------------------------------------

struct Heads {
  int query, kv, dim;
};

uint32_t* counters() {
  static Array<uint32_t> array(PagedAttention::counter_bytes() / 4);
  static bool zeroed = (array.fill(0), true);
  (void)zeroed;
  return array.data();
}

const cudaDeviceProp& device() {
  static const cudaDeviceProp properties = [] {
    cudaDeviceProp p;
    cuda_check(cudaGetDeviceProperties(&p, 0), "cudaGetDeviceProperties");
    return p;
  }();
  return properties;
}

const PagedAttention& attention() {
  static const PagedAttention instance(device().major, device().multiProcessorCount, counters());
  return instance;
}

// Slot i holds sequence i. `layers` pools interleaved as the engine's: [block][layer][K|V][head][token][dim].
class Sequences {
 public:
  Sequences(Heads heads, std::vector<int> lengths, int block_tokens, uint32_t seed, int layers = 2)
      : heads_(heads), lengths_(std::move(lengths)), layers_(layers), seed_(seed) {
    const int longest = *std::max_element(lengths_.begin(), lengths_.end());
    table_stride_ = (longest + block_tokens - 1) / block_tokens + 1;
    std::vector<int32_t> tables(lengths_.size() * static_cast<size_t>(table_stride_), 1 << 30), ids;
    int64_t blocks = 0;
    for (int length : lengths_) blocks += (length + block_tokens - 1) / block_tokens;
    ids.resize(static_cast<size_t>(blocks) + 3);
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937 random(seed);
    std::shuffle(ids.begin(), ids.end(), random);
    size_t next = 0;
    for (size_t s = 0; s < lengths_.size(); ++s)
      for (int b = 0; b * block_tokens < lengths_[s]; ++b)
        tables[s * static_cast<size_t>(table_stride_) + static_cast<size_t>(b)] = ids[next++];
    tables_ = tables;
    seq_len_.resize(static_cast<int64_t>(lengths_.size()));

    kv_.token_stride = heads.dim * 2;
    kv_.head_stride = kv_.token_stride * block_tokens;
    kv_.plane_offset[1] = kv_.head_stride * heads.kv;
    kv_.block_stride = kv_.plane_offset[1] * 2 * layers;
    kv_.num_heads = heads.kv;
    kv_.head_dim = heads.dim;
    kv_.block_tokens = block_tokens;
    kv_.num_blocks = static_cast<int64_t>(ids.size());
    kv_.dtype = DType::kBF16;
    pool_.resize(kv_.block_stride * kv_.num_blocks);
  }

  KvView kv(int layer) const {
    KvView view = kv_;
    view.base = pool_.data() + layer * 2 * kv_.plane_offset[1];
    return view;
  }
  // Positions below stored[i] have values, all else is NaN.
  void store(const std::vector<int32_t>& stored) {
    pool_.fill(0xff);
    Array<int32_t> limits(stored);
    for (int layer = 0; layer < layers_; ++layer)
      fill_pool<<<dim3(static_cast<unsigned>(lengths_.size()), 256), 256>>>(kv(layer), tables_.data(), table_stride_,
                                                                            limits.data(), seed_ + 10 * layer);
    cuda_check(cudaDeviceSynchronize(), "fill_pool");
  }
  void store_all() { store(std::vector<int32_t>(lengths_.begin(), lengths_.end())); }

  AttentionProblem problem(int layer, const bf16* q, bf16* out, int rows, int64_t q_stride = 0) const {
    return {.q = q,
            .q_stride = q_stride ? q_stride : width(),
            .out = out,
            .out_stride = width(),
            .num_rows = rows,
            .num_heads = heads_.query,
            .scale = 1.0f / std::sqrt(static_cast<float>(heads_.dim)),
            .kv = kv(layer),
            .seq_len = seq_len_.data(),
            .block_tables = tables_.data(),
            .block_table_stride = table_stride_};
  }

  int64_t width() const { return int64_t{heads_.query} * heads_.dim; }
  const std::vector<int>& lengths() const { return lengths_; }
  int longest() const { return *std::max_element(lengths_.begin(), lengths_.end()); }
  Array<int32_t>& seq_len() { return seq_len_; }
  const Array<int32_t>& tables() const { return tables_; }
  int64_t table_stride() const { return table_stride_; }
  Array<uint8_t>& pool() { return pool_; }

 private:
  Heads heads_;
  std::vector<int> lengths_;
  int layers_;
  uint32_t seed_;
  KvView kv_;
  int64_t table_stride_ = 0;
  Array<int32_t> tables_, seq_len_;
  Array<uint8_t> pool_;
};

// Rows of a step: (sequence, position), sequences' first rows at seq_len.
struct Step {
  std::vector<int32_t> seq_len, row_slot, row_offset;
  std::vector<Segment> segments;

  void add(int sequence, int rows) {
    segments.push_back({sequence, static_cast<int32_t>(row_slot.size()), rows, Form::kPrefill});
    for (int i = 0; i < rows; ++i) {
      row_slot.push_back(sequence);
      row_offset.push_back(i);
    }
  }
  int rows() const { return static_cast<int>(row_slot.size()); }
};

enum class Kernel { kDecode, kPlain, kPrefill, kAnyDim };

struct Output {
  std::vector<uint16_t> bits;  // [rows][width]
  int64_t width;
  const uint16_t* row(int i) const { return bits.data() + i * width; }
};

// Runs a step; q of a row is a function of its sequence and position.
Output run(Sequences& sequences, const Step& step, Kernel kernel, const DecodeSchedule& schedule = {}, int layer = 1,
           std::vector<double>* fp64 = nullptr) {
  const int rows = step.rows();
  const int64_t width = sequences.width(), stride = width + 64;  // as in a wider qkv
  sequences.seq_len() = step.seq_len;
  Array<int32_t> row_slot(step.row_slot), row_offset(step.row_offset),
      count(std::vector<int32_t>{static_cast<int32_t>(step.segments.size())});
  Array<Segment> segments(step.segments);
  Array<bf16> q(rows * stride), out((rows + 1) * width);
  q.fill(0xff);
  out.fill(0xff);
  fill_rows<<<rows, 256>>>(q.data(), stride, static_cast<int>(width), row_slot.data(), row_offset.data(),
                           sequences.seq_len().data(), 77);
  const AttentionProblem problem = sequences.problem(layer, q.data(), out.data(), rows, stride);
  const DecodeRows all{0, rows, row_slot.data(), row_offset.data()};
  const PrefillSegments prefills{segments.data(), count.data(), static_cast<int>(step.segments.size()), all};
  const int max_positions = sequences.longest();
  const int shares = std::max(schedule.shares, 2 * device().multiProcessorCount);
  const int64_t bytes =
      attention().workspace_bytes(problem.num_heads, problem.kv.num_heads, problem.kv.head_dim, max_positions) /
      (2 * device().multiProcessorCount) * shares;
  Array<uint8_t> workspace(bytes);
  workspace.fill(0xff);
  if (kernel == Kernel::kDecode)
    attention().decode(nullptr, problem, all, workspace.data(), bytes, max_positions, schedule);
  else if (kernel == Kernel::kPlain)
    attention().prefill_plain(nullptr, problem, prefills);
  else if (kernel == Kernel::kPrefill)
    attention().prefill(nullptr, problem, prefills);
  else
    attention().any_dim(nullptr, problem, all);
  cuda_check(cudaDeviceSynchronize(), "attention");
  if (fp64 != nullptr) {
    Array<double> scores(int64_t{rows} * problem.num_heads * max_positions), exact(rows * width);
    reference<<<dim3(static_cast<unsigned>(rows), static_cast<unsigned>(problem.num_heads)), 128>>>(
        problem, row_slot.data(), row_offset.data(), scores.data(), max_positions, exact.data());
    cuda_check(cudaDeviceSynchronize(), "reference");
    *fp64 = exact.host();
  }
  const std::vector<bf16> values = out.host();
  Output output{std::vector<uint16_t>(static_cast<size_t>(rows * width)), width};
  std::memcpy(output.bits.data(), values.data(), output.bits.size() * 2);
  for (int64_t i = rows * width; i < (rows + 1) * width; ++i)
    if (reinterpret_cast<const uint16_t*>(values.data())[i] != 0xffff) report(false, "a write behind the last row");
  return output;
}

// Every position of every sequence in one step.
Step whole(const Sequences& sequences) {
  Step step;
  step.seq_len.assign(sequences.lengths().size(), 0);
  for (size_t s = 0; s < sequences.lengths().size(); ++s) step.add(static_cast<int>(s), sequences.lengths()[s]);
  return step;
}

int64_t differing(const Output& a, const Output& b) {
  int64_t count = 0;
  for (size_t i = 0; i < a.bits.size(); ++i) count += a.bits[i] != b.bits[i];
  return count + (a.bits.size() != b.bits.size());
}

std::string shape(Heads heads) {
  return std::to_string(heads.query) + "/" + std::to_string(heads.kv) + "/" + std::to_string(heads.dim);
}

double relative_error(const Output& output, const std::vector<double>& exact) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double value = to_f32(BFloat16{output.bits[i]});
    error += (value - exact[i]) * (value - exact[i]);
    norm += exact[i] * exact[i];
  }
  return std::sqrt(error / norm);  // NaN if one is
}

// ---- Checks --------------------------------------------------------------------------------------------------------

void check_shape(Heads heads, const std::vector<int>& lengths, uint32_t seed, bool thorough) {
  const bool tiles = heads.dim == 64 || heads.dim == 128;
  Sequences sequences(heads, lengths, 64, seed);
  sequences.store_all();
  const Step all = whole(sequences);
  std::vector<double> exact;
  const Output expected = run(sequences, all, Kernel::kAnyDim, {}, 1, &exact);
  const double error = relative_error(expected, exact);
  report(error < 4e-3, shape(heads) + ": error against fp64 " + std::to_string(error));
  const auto same = [&](const Output& output, const std::string& what) {
    const int64_t count = differing(output, expected);
    report(count == 0, shape(heads) + ": " + what + ": " + std::to_string(count) + " of " +
                           std::to_string(output.bits.size()) + " values differ");
  };
  if (!tiles) {
    same(run(sequences, all, Kernel::kDecode), "decode");
    same(run(sequences, all, Kernel::kPrefill), "prefill");
    return;
  }
  same(run(sequences, all, Kernel::kPlain), "plain prefill");
  same(run(sequences, all, Kernel::kPrefill), "prefill");
  same(run(sequences, all, Kernel::kDecode), "decode");
  same(run(sequences, all, Kernel::kDecode, {.plain_copies = true}), "decode, plain copies");
  if (!thorough) return;

  // Schedules.
  int64_t schedules = 0, wrong = 0;
  for (int shares : {1, 7, 37, 72, 100, 132, 133, 264, 396, 1000})
    for (int slots : {4, 6, 7, 12})
      for (int snap : {0, 4, 8}) {
        wrong +=
            differing(run(sequences, all, Kernel::kDecode, {.shares = shares, .slots = slots, .snap = snap}), expected);
        ++schedules;
      }
  report(wrong == 0,
         shape(heads) + ": " + std::to_string(schedules) + " schedules: " + std::to_string(wrong) + " values differ");

  // The last row of each sequence alone, and batches of it: few pairs, many cuts.
  for (int shares : {0, 16, 100, 264, 1000}) {
    Step last;
    for (size_t s = 0; s < lengths.size(); ++s) {
      last.seq_len.push_back(lengths[s] - 1);
      last.add(static_cast<int>(s), 1);
    }
    const Output output = run(sequences, last, Kernel::kDecode, {.shares = shares, .snap = shares ? 0 : -1});
    int64_t count = 0, row = 0;
    for (size_t s = 0; s < lengths.size(); ++s) {
      row += lengths[s];
      for (int64_t i = 0; i < output.width; ++i)
        count += output.row(static_cast<int>(s))[i] != expected.row(static_cast<int>(row - 1))[i];
    }
    report(count == 0, shape(heads) + ": last rows, " + std::to_string(shares) + " shares: " + std::to_string(count) +
                           " values differ");
  }

  // Blocks of the pool, other block ids.
  for (int block_tokens : {16, 32, 48, 128, 256}) {
    Sequences other(heads, lengths, block_tokens, seed, 3);
    // The same values: they depend on the seed of the layer only.
    other.store_all();
    same(run(other, all, Kernel::kPrefill), "prefill, blocks of " + std::to_string(block_tokens));
    same(run(other, all, Kernel::kPlain), "plain prefill, blocks of " + std::to_string(block_tokens));
    same(run(other, all, Kernel::kDecode), "decode, blocks of " + std::to_string(block_tokens));
  }

  // Chunks: what is not yet stored is NaN; segments of different lengths in one step, in changing order.
  for (int chunk : {1, 7, 64, 100}) {
    std::vector<int32_t> done(lengths.size(), 0);
    std::vector<int> first(lengths.size(), 0);
    for (size_t s = 1; s < lengths.size(); ++s) first[s] = first[s - 1] + lengths[s - 1];
    int64_t count[3] = {};
    for (int turn = 0; turn < (chunk == 1 ? 140 : 1 << 20); ++turn) {
      Step step;
      step.seq_len = done;
      std::vector<int32_t> stored = done;
      for (size_t i = 0; i < lengths.size(); ++i) {
        const size_t s = (i + static_cast<size_t>(turn)) % lengths.size();
        const int rows = std::min(chunk + (chunk > 1 ? static_cast<int>(s % 3) : 0), lengths[s] - done[s]);
        if (rows == 0) continue;
        step.add(static_cast<int>(s), rows);
        stored[s] += rows;
      }
      if (step.rows() == 0) break;
      sequences.store(stored);
      int kernel_index = 0;
      for (Kernel kernel : {Kernel::kPrefill, Kernel::kPlain, Kernel::kDecode}) {
        const Output output = run(sequences, step, kernel);
        for (int row = 0; row < step.rows(); ++row) {
          const size_t s = static_cast<size_t>(step.row_slot[static_cast<size_t>(row)]);
          const int position = done[s] + step.row_offset[static_cast<size_t>(row)];
          for (int64_t i = 0; i < output.width; ++i)
            count[kernel_index] += output.row(row)[i] != expected.row(first[s] + position)[i];
        }
        ++kernel_index;
      }
      done = stored;
    }
    report(count[0] + count[1] + count[2] == 0, shape(heads) + ": chunks of " + std::to_string(chunk) + ": " +
                                                    std::to_string(count[0]) + ", " + std::to_string(count[1]) + ", " +
                                                    std::to_string(count[2]) + " values differ");
  }
}

// Counters must be as launches found them.
void check_counters() {
  std::vector<uint32_t> values(static_cast<size_t>(PagedAttention::counter_bytes() / 4));
  cuda_check(cudaMemcpy(values.data(), counters(), values.size() * 4, cudaMemcpyDeviceToHost), "counters");
  report(std::all_of(values.begin(), values.end(), [](uint32_t v) { return v == 0; }), "counters are zero afterwards");
}

void check_rope_store(Heads heads, int rotary_half, bool normed) {
  const std::vector<int> lengths = {300, 70, 1, 33};
  Sequences sequences(heads, lengths, 16, 5);
  sequences.pool().fill(0xff);
  Step step;
  step.seq_len = {290, 0, 0, 17};
  for (int s : {2, 0, 3, 1})
    step.add(s, std::min(lengths[static_cast<size_t>(s)] - step.seq_len[static_cast<size_t>(s)], s == 1 ? 40 : 9));
  const int rows = step.rows(), width = (heads.query + 2 * heads.kv) * heads.dim;
  sequences.seq_len() = step.seq_len;
  Array<int32_t> row_slot(step.row_slot), row_offset(step.row_offset);
  std::vector<float> q_norm, k_norm, inv_freq;
  for (int d = 0; d < heads.dim; ++d) {
    q_norm.push_back(0.5f + static_cast<float>(d % 7) * 0.1f);
    k_norm.push_back(1.5f - static_cast<float>(d % 5) * 0.2f);
  }
  for (int i = 0; i < rotary_half; ++i)
    inv_freq.push_back(static_cast<float>(std::pow(1e4, -static_cast<double>(i) / rotary_half)));
  Array<float> q_weight(q_norm), k_weight(k_norm), frequencies(inv_freq);
  Array<bf16> qkv(int64_t{rows} * width);
  fill_rows<<<rows, 256>>>(qkv.data(), width, width, row_slot.data(), row_offset.data(), sequences.seq_len().data(),
                           99);
  cuda_check(cudaDeviceSynchronize(), "fill_rows");
  const std::vector<bf16> before = qkv.host();
  const KvView kv = sequences.kv(1);
  qkv_rope_store(nullptr, {.qkv = qkv.data(),
                           .stride = width,
                           .num_rows = rows,
                           .num_heads = heads.query,
                           .q_norm = normed ? q_weight.data() : nullptr,
                           .k_norm = normed ? k_weight.data() : nullptr,
                           .norm_epsilon = 1e-6f,
                           .inv_freq = frequencies.data(),
                           .rotary_half = rotary_half,
                           .kv = kv,
                           .row_slot = row_slot.data(),
                           .row_offset = row_offset.data(),
                           .seq_len = sequences.seq_len().data(),
                           .block_tables = sequences.tables().data(),
                           .block_table_stride = sequences.table_stride()});
  cuda_check(cudaDeviceSynchronize(), "qkv_rope_store");
  const std::vector<bf16> after = qkv.host();
  std::vector<uint8_t> pool = sequences.pool().host();
  const std::vector<int32_t> tables = sequences.tables().host();
  double error = 0, norm = 0;
  for (int row = 0; row < rows; ++row)
    for (int index = 0; index < heads.query + 2 * heads.kv; ++index) {
      const int slot = step.row_slot[static_cast<size_t>(row)];
      const int position = step.seq_len[static_cast<size_t>(slot)] + step.row_offset[static_cast<size_t>(row)];
      const int plane = index < heads.query + heads.kv ? 0 : 1;
      const int head = index - heads.query - plane * heads.kv;
      bf16* got = const_cast<bf16*>(after.data()) + int64_t{row} * width + index * heads.dim;
      if (index >= heads.query)
        got = reinterpret_cast<bf16*>(
            pool.data() + (kv.base - sequences.pool().data()) +
            tables[static_cast<size_t>(slot * sequences.table_stride() + position / kv.block_tokens)] *
                kv.block_stride +
            kv.plane_offset[plane] + head * kv.head_stride + position % kv.block_tokens * kv.token_stride);
      std::vector<double> x(static_cast<size_t>(heads.dim));
      double squares = 0;
      for (int d = 0; d < heads.dim; ++d) {
        x[static_cast<size_t>(d)] = static_cast<double>(
            __bfloat162float(before[static_cast<size_t>(int64_t{row} * width + index * heads.dim + d)]));
        squares += x[static_cast<size_t>(d)] * x[static_cast<size_t>(d)];
      }
      if (normed && plane == 0)
        for (int d = 0; d < heads.dim; ++d)
          x[static_cast<size_t>(d)] *=
              static_cast<double>((index < heads.query ? q_norm : k_norm)[static_cast<size_t>(d)]) /
              std::sqrt(squares / heads.dim + 1e-6);
      if (plane == 0)
        for (int d = 0; d < rotary_half; ++d) {
          const double angle = static_cast<double>(static_cast<float>(position) * inv_freq[static_cast<size_t>(d)]);
          const double a = x[static_cast<size_t>(d)], b = x[static_cast<size_t>(d + rotary_half)];
          x[static_cast<size_t>(d)] = a * std::cos(angle) - b * std::sin(angle);
          x[static_cast<size_t>(d + rotary_half)] = b * std::cos(angle) + a * std::sin(angle);
        }
      for (int d = 0; d < heads.dim; ++d) {
        const double difference = static_cast<double>(__bfloat162float(got[d])) - x[static_cast<size_t>(d)];
        error += difference * difference;
        norm += x[static_cast<size_t>(d)] * x[static_cast<size_t>(d)];
        if (index >= heads.query) got[d] = __ushort_as_bfloat16(0xffff);  // taken
      }
    }
  report(std::sqrt(error / norm) < 3e-3, "qkv_rope_store " + shape(heads) + (normed ? " normed" : "") + ": error " +
                                             std::to_string(std::sqrt(error / norm)));
  report(std::all_of(pool.begin(), pool.end(), [](uint8_t byte) { return byte == 0xff; }),
         "qkv_rope_store " + shape(heads) + ": nothing else of the pool is written");
}

void check_ropes() {
  check_rope_store({8, 2, 128}, 64, true);
  check_rope_store({14, 2, 64}, 32, false);
  check_rope_store({4, 4, 96}, 48, true);
  check_rope_store({4, 1, 128}, 32, false);
}

// Decode that norms, rotates and stores itself against qkv_rope_store and decode one after the other: outputs and all
// of the pool, bit by bit. The row's own position is NaN before, as is all behind it.
void check_decode_with_rope(Heads heads, bool normed, int block_tokens, const std::vector<int>& lengths) {
  const int rows = static_cast<int>(lengths.size()), width = (heads.query + 2 * heads.kv) * heads.dim;
  Sequences sequences(heads, lengths, block_tokens, 9);
  Step step;
  for (int s = 0; s < rows; ++s) step.seq_len.push_back(lengths[static_cast<size_t>(s)] - 1);
  for (int s = 0; s < rows; ++s) step.add((s * 5 + 3) % rows, 1);  // REQUIRES: 5 doesn't divide rows
  sequences.seq_len() = step.seq_len;
  Array<int32_t> row_slot(step.row_slot), row_offset(step.row_offset);
  std::vector<float> weights, inv_freq;
  for (int d = 0; d < 2 * heads.dim; ++d) weights.push_back(0.5f + static_cast<float>(d % 7) * 0.1f);
  for (int i = 0; i < heads.dim / 2; ++i) inv_freq.push_back(static_cast<float>(std::pow(1e4, -2.0 * i / heads.dim)));
  Array<float> norms(weights), frequencies(inv_freq);
  const float *q_norm = normed ? norms.data() : nullptr, *k_norm = normed ? norms.data() + heads.dim : nullptr;
  Array<bf16> qkv(int64_t{rows} * width), out(int64_t{rows} * sequences.width());
  const int max_positions = sequences.longest();
  const int most_shares = 1000, sms = device().multiProcessorCount;
  const int64_t bytes = attention().workspace_bytes(heads.query, heads.kv, heads.dim, max_positions) / (2 * sms) *
                        std::max(most_shares, 2 * sms);
  Array<uint8_t> workspace(bytes);
  AttentionProblem problem = sequences.problem(1, qkv.data(), out.data(), rows, width);
  const DecodeRows all{0, rows, row_slot.data(), row_offset.data()};
  const auto prepare = [&] {
    sequences.store(step.seq_len);
    out.fill(0xff);
    workspace.fill(0xff);
    fill_rows<<<rows, 256>>>(qkv.data(), width, width, row_slot.data(), row_offset.data(), sequences.seq_len().data(),
                             99);
  };
  const auto bits = [&] {
    cuda_check(cudaDeviceSynchronize(), "attention");
    const std::vector<bf16> values = out.host();
    std::vector<uint8_t> raw = sequences.pool().host();
    raw.insert(raw.end(), reinterpret_cast<const uint8_t*>(values.data()),
               reinterpret_cast<const uint8_t*>(values.data() + values.size()));
    return raw;
  };
  prepare();
  qkv_rope_store(nullptr, {.qkv = qkv.data(),
                           .stride = width,
                           .num_rows = rows,
                           .num_heads = heads.query,
                           .q_norm = q_norm,
                           .k_norm = k_norm,
                           .norm_epsilon = 1e-6f,
                           .inv_freq = frequencies.data(),
                           .rotary_half = heads.dim / 2,
                           .kv = problem.kv,
                           .row_slot = row_slot.data(),
                           .row_offset = row_offset.data(),
                           .seq_len = sequences.seq_len().data(),
                           .block_tables = sequences.tables().data(),
                           .block_table_stride = sequences.table_stride()});
  attention().decode(nullptr, problem, all, workspace.data(), bytes, max_positions);
  const std::vector<uint8_t> expected = bits();
  problem.rope = {.inv_freq = frequencies.data(), .q_norm = q_norm, .k_norm = k_norm, .norm_epsilon = 1e-6f};
  int64_t wrong = 0, schedules = 0;
  for (int shares : {0, 1, 7, 72, 133, most_shares})
    for (bool plain_copies : {false, true}) {
      prepare();
      attention().decode(nullptr, problem, all, workspace.data(), bytes, max_positions,
                         {.shares = shares, .plain_copies = plain_copies});
      const std::vector<uint8_t> got = bits();
      for (size_t i = 0; i < got.size(); ++i) wrong += got[i] != expected[i];
      ++schedules;
    }
  report(wrong == 0, "decode with rope " + shape(heads) + (normed ? " normed" : "") + ", blocks of " +
                         std::to_string(block_tokens) + ", " + std::to_string(schedules) +
                         " schedules: " + std::to_string(wrong) + " bytes differ");
}

void small() {
  check_ropes();
  check_decode_with_rope({8, 2, 128}, true, 16, {1, 65, 200, 129});
  check_decode_with_rope({3, 3, 64}, false, 64, {1, 65, 200, 129});
  for (Heads heads : {Heads{4, 1, 128}, Heads{3, 3, 64}, Heads{2, 1, 32}})
    check_shape(heads, {1, 65, 200, 129}, 3, false);
  Sequences sequences({4, 1, 128}, {700, 260, 65}, 16, 3);
  sequences.store_all();
  Step step;
  step.seq_len = {699, 200, 64};
  step.add(1, 60);
  step.add(0, 1);
  step.add(2, 1);
  const Output expected = run(sequences, step, Kernel::kAnyDim);
  report(differing(run(sequences, step, Kernel::kDecode, {.shares = 37, .slots = 4, .snap = 0}), expected) == 0,
         "small: divided pairs");
  report(differing(run(sequences, step, Kernel::kPrefill), expected) == 0, "small: prefill on a prefix");
  check_counters();
}

void check_all() {
  const std::vector<int> lengths = {1, 63, 64, 65, 127, 128, 129, 191, 300, 385, 517, 1152};
  check_ropes();
  const std::vector<int> ends = {1, 64, 65, 127, 128, 129, 192, 193, 300, 511, 1000, 1153};  // 12 rows
  for (int block_tokens : {16, 48, 64, 256}) {
    check_decode_with_rope({32, 8, 128}, true, block_tokens, ends);
    check_decode_with_rope({14, 2, 64}, false, block_tokens, ends);
  }
  check_decode_with_rope({20, 1, 128}, true, 64, ends);  // three head groups
  check_shape({32, 8, 128}, {1, 130, 257, 600}, 11, false);
  check_shape({8, 2, 128}, lengths, 12, true);
  check_shape({14, 2, 64}, lengths, 13, true);
  for (Heads heads :
       {Heads{3, 3, 128}, Heads{4, 2, 64}, Heads{10, 2, 128}, Heads{6, 1, 128}, Heads{8, 1, 128}, Heads{16, 1, 128},
        Heads{12, 1, 64}, Heads{4, 2, 32}, Heads{4, 2, 96}, Heads{2, 1, 256}, Heads{2, 2, 80}})
    check_shape(heads, {1, 64, 129, 300, 517}, 14, false);
  check_counters();
}

// ---- Times ---------------------------------------------------------------------------------------------------------

double median_ms(cudaStream_t stream, int repeats, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  cuda_check(cudaEventCreate(&begin), "event");
  cuda_check(cudaEventCreate(&end), "event");
  std::vector<double> times;
  for (int i = 0; i < repeats + 2; ++i) {
    cuda_check(cudaEventRecord(begin, stream), "record");
    work();
    cuda_check(cudaEventRecord(end, stream), "record");
    cuda_check(cudaEventSynchronize(end), "synchronize");
    float ms = 0;
    cuda_check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (i >= 2) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Of a graph of what `record` launches.
double graph_ms(int repeats, const std::function<void(cudaStream_t)>& record) {
  cudaStream_t stream;
  cuda_check(cudaStreamCreate(&stream), "stream");
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  record(stream);
  cuda_check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda_check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const double ms = median_ms(stream, repeats, [&] { cuda_check(cudaGraphLaunch(exec, stream), "launch"); });
  cuda_check(cudaGraphExecDestroy(exec), "destroy");
  cuda_check(cudaGraphDestroy(graph), "destroy");
  cuda_check(cudaStreamDestroy(stream), "destroy");
  return ms;
}

template <int kLoads>
__global__ void __launch_bounds__(512) read_kernel(const uint4* from, int64_t count, uint4* sink) {
  uint4 sum{};
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i + (kLoads - 1) * step < count;
       i += kLoads * step) {
    uint4 v[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) v[k] = __ldcs(from + i + k * step);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      sum.x ^= v[k].x;
      sum.y ^= v[k].y;
      sum.z ^= v[k].z;
      sum.w ^= v[k].w;
    }
  }
  if (sum.x == 0x12345678u && sum.y == 0x9abcdef0u) *sink = sum;
}

double read_rate() {  // TB/s, the best of a few kernels over 16 GB
  const int64_t bytes = int64_t{16} << 30;
  Array<uint8_t> data(bytes), sink(16);
  data.fill(0x5a);
  double best = 0;
  const auto* from = reinterpret_cast<const uint4*>(data.data());
  for (int ctas : {264, 528, 1056, 4224}) {
    best = std::max(best, static_cast<double>(bytes) * 1e-9 / median_ms(nullptr, 3, [&] {
                            read_kernel<4><<<ctas, 512>>>(from, bytes / 16, reinterpret_cast<uint4*>(sink.data()));
                          }));
    best = std::max(best, static_cast<double>(bytes) * 1e-9 / median_ms(nullptr, 3, [&] {
                            read_kernel<8><<<ctas, 512>>>(from, bytes / 16, reinterpret_cast<uint4*>(sink.data()));
                          }));
  }
  return best;
}

void time_decode() {
  const Heads heads{32, 8, 128};
  std::printf("read rate %.3f TB/s\n", read_rate());
  for (int context : {1152, 8192})
    for (int mixed = 0; mixed < 2; ++mixed) {
      const int most = 256, layers = context == 1152 ? 16 : 3;
      std::vector<int> lengths;
      std::mt19937 random(4);
      for (int s = 0; s < most; ++s)
        lengths.push_back(mixed ? context / 4 + static_cast<int>(random() % static_cast<unsigned>(3 * context / 2))
                                : context);
      Sequences sequences(heads, lengths, 64, 9, layers);
      sequences.store_all();
      Step step;
      for (int length : lengths) step.seq_len.push_back(length - 1);
      for (int s = 0; s < most; ++s) step.add(s, 1);
      sequences.seq_len() = step.seq_len;
      Array<int32_t> row_slot(step.row_slot), row_offset(step.row_offset);
      Array<bf16> q(most * sequences.width()), out(most * sequences.width());
      fill_rows<<<most, 256>>>(q.data(), sequences.width(), static_cast<int>(sequences.width()), row_slot.data(),
                               row_offset.data(), sequences.seq_len().data(), 7);
      const int max_positions = sequences.longest();
      const int64_t bytes = attention().workspace_bytes(32, 8, 128, max_positions) * 2;
      Array<uint8_t> workspace(bytes);
      for (int batch : {1, 8, 32, 64, 128, 256}) {
        double kv_bytes = 0;
        for (int s = 0; s < batch; ++s) kv_bytes += lengths[static_cast<size_t>(s)] * 4096.0;
        const int launches = kv_bytes * layers > 1e9 ? std::max(layers, 6) : 36;
        std::string line;
        double best = 1e9;
        struct Variant {
          const char* name;
          DecodeSchedule schedule;
        };
        for (const Variant& v : std::vector<Variant>{{"chosen", {}},
                                                     {"132x12 s0", {132, 12, 0}},
                                                     {"132x12 s8", {132, 12, 8}},
                                                     {"264x6 s0", {264, 6, 0}},
                                                     {"264x6 s4", {264, 6, 4}},
                                                     {"264x6 s8", {264, 6, 8}},
                                                     {"256x6 s0", {256, 6, 0}},
                                                     {"128x10 s0", {128, 10, 0}}}) {
          if (mixed && v.schedule.shares % 128 == 0 && v.schedule.shares > 0) continue;
          const double ms = graph_ms(7, [&](cudaStream_t stream) {
            for (int i = 0; i < launches; ++i)
              attention().decode(stream, sequences.problem(i % layers, q.data(), out.data(), most),
                                 {0, batch, row_slot.data(), row_offset.data()}, workspace.data(), bytes, max_positions,
                                 v.schedule);
          });
          const double us = ms * 1e3 / launches;
          best = std::min(best, us);
          char text[96];
          std::snprintf(text, sizeof text, "  %s %.1f (%.2f)", v.name, us, kv_bytes / us * 1e-6);
          line += text;
        }
        std::printf("decode %s %d batch %3d: us a layer (TB/s)%s\n", mixed ? "mixed, mean" : "context", context, batch,
                    line.c_str());
        std::fflush(stdout);
      }
    }
}

void time_prefill() {
  counters();
  attention();
  const Heads heads{32, 8, 128};
  struct Run {
    int prefix, rows, count;
  };
  for (const Run& r : std::vector<Run>{{0, 512, 1},
                                       {0, 2048, 1},
                                       {8192, 2048, 1},
                                       {0, 8192, 1},
                                       {0, 32768, 1},
                                       {0, 512, 16},
                                       {0, 2048, 4},
                                       {8000, 192, 1},
                                       {1000, 64, 8}}) {
    const int layers = 4;
    std::vector<int> lengths(static_cast<size_t>(r.count), r.prefix + r.rows);
    Sequences sequences(heads, lengths, 64, 9, layers);
    sequences.store_all();
    Step step;
    step.seq_len.assign(static_cast<size_t>(r.count), r.prefix);
    for (int s = 0; s < r.count; ++s) step.add(s, r.rows);
    sequences.seq_len() = step.seq_len;
    const int rows = step.rows();
    Array<int32_t> row_slot(step.row_slot), row_offset(step.row_offset), count(std::vector<int32_t>{r.count});
    Array<Segment> segments(step.segments);
    const int64_t stride = (heads.query + 2 * heads.kv) * heads.dim;
    Array<bf16> q(rows * stride), out(rows * sequences.width());
    fill_rows<<<rows, 256>>>(q.data(), stride, static_cast<int>(stride), row_slot.data(), row_offset.data(),
                             sequences.seq_len().data(), 7);
    cuda_check(cudaDeviceSynchronize(), "fill");
    const double positions = (static_cast<double>(r.prefix) * r.rows + 0.5 * r.rows * (r.rows + 1.0)) * r.count;
    const double flops = positions * 4 * heads.query * heads.dim;
    const auto timed = [&](bool plain) {
      return graph_ms(5,
                      [&](cudaStream_t stream) {
                        for (int i = 0; i < layers; ++i) {
                          const AttentionProblem problem = sequences.problem(i, q.data(), out.data(), rows, stride);
                          const PrefillSegments prefills{
                              segments.data(), count.data(), r.count, {0, rows, row_slot.data(), row_offset.data()}};
                          if (plain)
                            attention().prefill_plain(stream, problem, prefills);
                          else
                            attention().prefill(stream, problem, prefills);
                        }
                      }) /
             layers;
    };
    const double ms = timed(false), plain_ms = r.rows <= 512 ? timed(true) : 0;
    std::printf("prefill %d x %5d rows on %5d: %8.1f us %5.0f TFLOP/s", r.count, r.rows, r.prefix, ms * 1e3,
                flops / ms * 1e-9);
    if (plain_ms > 0) std::printf("   plain %8.1f us %5.0f TFLOP/s", plain_ms * 1e3, flops / plain_ms * 1e-9);
    std::printf("\n");
    std::fflush(stdout);
  }
}

void time_rope_store() {
  counters();
  const Heads heads{32, 8, 128};
  for (int rows : {1, 8, 32, 128, 256, 2048, 8192}) {
    std::vector<int> lengths(1, rows);
    Sequences sequences(heads, lengths, 64, 9, 4);
    Step step = whole(sequences);
    sequences.seq_len() = step.seq_len;
    Array<int32_t> row_slot(step.row_slot), row_offset(step.row_offset);
    const int width = 48 * 128;
    Array<bf16> qkv(int64_t{rows} * width);
    Array<float> norm(std::vector<float>(128, 1.0f)), frequencies(std::vector<float>(64, 0.1f));
    fill_rows<<<rows, 256>>>(qkv.data(), width, width, row_slot.data(), row_offset.data(), sequences.seq_len().data(),
                             7);
    const double ms = graph_ms(7, [&](cudaStream_t stream) {
      for (int i = 0; i < 36; ++i)
        qkv_rope_store(stream, {.qkv = qkv.data(),
                                .stride = width,
                                .num_rows = rows,
                                .num_heads = 32,
                                .q_norm = norm.data(),
                                .k_norm = norm.data(),
                                .inv_freq = frequencies.data(),
                                .rotary_half = 64,
                                .kv = sequences.kv(i % 4),
                                .row_slot = row_slot.data(),
                                .row_offset = row_offset.data(),
                                .seq_len = sequences.seq_len().data(),
                                .block_tables = sequences.tables().data(),
                                .block_table_stride = sequences.table_stride()});
    });
    std::printf("qkv_rope_store %5d rows: %.2f us\n", rows, ms * 1e3 / 36);
  }
}

}  // namespace
}  // namespace rtp_llm::cuda

int main(int argc, char** argv) {
  using namespace rtp_llm::cuda;
  try {
    std::printf("%s, %d SMs\n", device().name, device().multiProcessorCount);
    for (int i = 1; i < argc; ++i) {
      const std::string what = argv[i];
      if (what == "small")
        small();
      else if (what == "check")
        check_all();
      else if (what == "decode")
        time_decode();
      else if (what == "prefill")
        time_prefill();
      else if (what == "rope")
        time_rope_store();
      else {
        std::fprintf(stderr, "unknown: %s\n", argv[i]);
        return 2;
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
