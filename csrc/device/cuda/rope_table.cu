// A thread an angle.
#include "device/cuda/rope_table.h"

#include "device/cuda/launch.h"
#include "device/cuda/ptx.cuh"
#include "device/cuda/rotation.cuh"

namespace rtp_llm::cuda {
namespace {

constexpr int kThreads = 256;

int64_t tokens_bytes(int64_t rows) { return (rows * int64_t{sizeof(int64_t)} + 255) / 256 * 256; }

__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(const __grid_constant__ RopeTableProblem p, Rotation* angles, int64_t* tokens) {
  let_successor_start();
  wait_for_predecessor();
  const int half = p.kv.head_dim / 2, thread = blockIdx.x * kThreads + threadIdx.x;
  const int row = thread / half, i = thread % half;
  if (row >= p.num_rows) return;
  const int slot = p.row_slot[row], position = p.seq_len[slot] + p.row_offset[row];
  const int word = i % 8 / 2 * (half / 8) + i / 8;
  angles[int64_t{row} * half + word * 2 + i % 2] = rotation_of(position, p.inv_freq[i]);
  if (i > 0) return;
  const int64_t block = p.block_tables[slot * p.block_table_stride + position / p.kv.block_tokens];
  tokens[row] = block * p.kv.block_stride + position % p.kv.block_tokens * p.kv.token_stride;
}

}  // namespace

int64_t rope_table_bytes(int64_t rows, int head_dim) {
  return tokens_bytes(rows) + rows * (head_dim / 2) * int64_t{sizeof(Rotation)};
}

RopeTable rope_table_in(void* memory, int64_t rows) {
  uint8_t* at = static_cast<uint8_t*>(memory);
  return {.angles = reinterpret_cast<const float4*>(at + tokens_bytes(rows)),
          .tokens = reinterpret_cast<const int64_t*>(at)};
}

void make_rope_table(cudaStream_t stream, const RopeTableProblem& problem, void* memory) {
  check(problem.kv.head_dim % 16 == 0, "rope_table: head_dim must be a multiple of 16, got ", problem.kv.head_dim);
  if (problem.num_rows == 0) return;
  uint8_t* at = static_cast<uint8_t*>(memory);
  const int64_t threads = int64_t{problem.num_rows} * (problem.kv.head_dim / 2);
  launch(stream, {.grid = dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), .block = dim3(kThreads)},
         "rope_table", rope_table_kernel, problem, reinterpret_cast<Rotation*>(at + tokens_bytes(problem.num_rows)),
         reinterpret_cast<int64_t*>(at));
}

}  // namespace rtp_llm::cuda
