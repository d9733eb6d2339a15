// rope and store_kv by themselves; a step uses qkv_rope_store, which does both at once.
#include "device/cuda/cuda_ops.h"
#include "device/cuda/launch.h"
#include "device/cuda/norm.cuh"
#include "device/cuda/rotation.cuh"
#include "device/cuda/types.h"

namespace rtp_llm::cuda {
namespace {

template <class T>
__global__ void rotate_rows(T* x, int64_t row_stride, int64_t head_stride, const float* inv_freq, int half,
                            const int32_t* row_slot, const int32_t* row_offset, const int32_t* seq_len) {
  let_successor_start();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int position = seq_len[row_slot[row]] + row_offset[row];
  T* head = x + row * row_stride + blockIdx.y * head_stride;
  for (int i = threadIdx.x; i < half; i += blockDim.x) {
    const Rotation turn = rotation_of(position, inv_freq[i]);
    const float first = to_f32(head[i]), second = to_f32(head[half + i]);
    head[i] = from_f32<T>(__fsub_rn(__fmul_rn(first, turn.cos), __fmul_rn(second, turn.sin)));
    head[half + i] = from_f32<T>(__fadd_rn(__fmul_rn(second, turn.cos), __fmul_rn(first, turn.sin)));
  }
}

template <class From, class To>
__global__ void store_rows(const From* k, const From* v, int64_t k_row, int64_t v_row, int64_t k_head, int64_t v_head,
                           const KvView kv, const int32_t* tables, int64_t table_stride, const int32_t* row_slot,
                           const int32_t* row_offset, const int32_t* seq_len) {
  let_successor_start();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int32_t slot = row_slot[row];
  const int position = seq_len[slot] + row_offset[row];
  const int64_t block = tables[slot * table_stride + position / kv.block_tokens];
  for (int i = threadIdx.x; i < 2 * kv.num_heads * kv.head_dim; i += blockDim.x) {
    const int element = i % kv.head_dim, head = i / kv.head_dim % kv.num_heads, plane = i / kv.head_dim / kv.num_heads;
    const From value = plane == 0 ? k[row * k_row + head * k_head + element] : v[row * v_row + head * v_head + element];
    auto* to = reinterpret_cast<To*>(kv.base + block * kv.block_stride + kv.plane_offset[plane] +
                                     head * kv.head_stride + position % kv.block_tokens * kv.token_stride);
    to[element] = from_f32<To>(to_f32(value));
  }
}

}  // namespace

void CudaOps::rope(const RopeArgs& args) {
  const int64_t rows = args.x.shape[0], heads = args.x.shape[1], half = args.inv_freq.numel();
  check(args.x.ndim == 3 && 2 * half <= args.x.shape[2], "rope: x must be [M, heads, head_dim] with head_dim at least ",
        2 * half);
  check(rows == args.step->num_rows, "rope: ", rows, " rows, the step has ", args.step->num_rows);
  with_type("rope", args.x.dtype, [&](auto type) {
    using T = decltype(type);
    launch(stream(), {.grid = dim3(rows, heads), .block = dim3(64)}, "rope", rotate_rows<T>, args.x.as<T>(),
           args.x.stride[0], args.x.stride[1], args.inv_freq.as<const float>(), static_cast<int>(half),
           args.step->row_slot.as<const int32_t>(), args.step->row_offset.as<const int32_t>(),
           args.step->slots->seq_len.as<const int32_t>());
  });
}

void CudaOps::store_kv(const StoreKvArgs& args) {
  const KvView& kv = args.kv;
  const int64_t rows = args.k.shape[0];
  for (const Tensor* x : {&args.k, &args.v})
    check(x->ndim == 3 && x->shape[0] == rows && x->shape[1] == kv.num_heads && x->shape[2] == kv.head_dim,
          "store_kv: k and v must be [", rows, ", ", kv.num_heads, ", ", kv.head_dim, "]");
  check(args.k.dtype == args.v.dtype, "store_kv: k is ", name_of(args.k.dtype), ", v is ", name_of(args.v.dtype));
  const Slots& slots = *args.step->slots;
  with_types("store_kv", args.k.dtype, kv.dtype, [&](auto from, auto to) {
    using From = decltype(from);
    launch(stream(), {.grid = dim3(rows), .block = dim3(256)}, "store_kv", store_rows<From, decltype(to)>,
           args.k.as<const From>(), args.v.as<const From>(), args.k.stride[0], args.v.stride[0], args.k.stride[1],
           args.v.stride[1], kv, slots.block_tables.as<const int32_t>(), slots.block_tables.stride[0],
           args.step->row_slot.as<const int32_t>(), args.step->row_offset.as<const int32_t>(),
           slots.seq_len.as<const int32_t>());
  });
}

}  // namespace rtp_llm::cuda
