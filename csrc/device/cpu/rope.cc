// rope and store_kv: the position-dependent work on q, k and v before attention.
#include <algorithm>
#include <cstring>

#include "device/cpu/cpu_ops.h"
#include "device/cpu/rows.h"
#include "device/cpu/slot_rows.h"
#include "device/cpu/vec.h"

namespace rtp_llm::cpu {
namespace {

// (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), x1 and x2 the halves.
void rotate(float* x, const float* cos, const float* sin, int64_t half) {
  for_lanes(half, [&](int64_t i, int64_t n) {
    const F32x16 c = load_run(cos + i, n), s = load_run(sin + i, n);
    const F32x16 x1 = load_run(x + i, n), x2 = load_run(x + half + i, n);
    store_run(x + i, x1 * c - x2 * s, n);
    store_run(x + half + i, x2 * c + x1 * s, n);
  });
}

RopeCache& cache_of(std::vector<RopeCache>& caches, const Tensor& inv_freq) {
  const auto* values = inv_freq.as<const float>();
  const auto count = static_cast<size_t>(inv_freq.numel());
  for (RopeCache& cache : caches)
    if (cache.inv_freq().size() == count && std::memcmp(cache.inv_freq().data(), values, count * sizeof(float)) == 0)
      return cache;
  return caches.emplace_back(std::vector<float>(values, values + count));
}

template <class From, class To>
void store_vector(const From* from, To* to, int64_t count) {
  for_lanes(count, [&](int64_t i, int64_t n) { store_run(to + i, load_run(from + i, n), n); });
}

}  // namespace

void CpuOps::rope(const RopeArgs& args) {
  const int64_t rows = args.x.shape[0], heads = args.x.shape[1], head_dim = args.x.shape[2];
  const int64_t half = args.inv_freq.numel();
  check(args.x.ndim == 3 && args.x.dtype == DType::kF32, "rope: x must be float32 [M, heads, head_dim]");
  check(args.inv_freq.dtype == DType::kF32 && 2 * half <= head_dim, "rope: inv_freq must be float32 of at most ",
        head_dim / 2, " elements, got ", half);
  RopeCache& cache = cache_of(rope_caches_, args.inv_freq);
  row_positions_.assign(static_cast<size_t>(rows), -1);
  for_each_row("rope", args.step, rows, [&](int64_t row, int32_t, int64_t position) {
    cache.prepare(position);
    row_positions_[static_cast<size_t>(row)] = position;
  });
  for_rows(rows, heads * half * 2, [&](int64_t row, int) {
    const int64_t position = row_positions_[static_cast<size_t>(row)];
    if (position < 0) return;  // of no segment
    for (int64_t head = 0; head < heads; ++head)
      rotate(args.x.as<float>() + row * args.x.stride[0] + head * args.x.stride[1], cache.cos(position),
             cache.sin(position), half);
  });
}

void CpuOps::store_kv(const StoreKvArgs& args) {
  const KvView& kv = args.kv;
  const int64_t rows = args.k.shape[0];
  for (const Tensor* x : {&args.k, &args.v})
    check(x->ndim == 3 && x->shape[0] == rows && x->shape[1] == kv.num_heads && x->shape[2] == kv.head_dim,
          "store_kv: k and v must be [", rows, ", ", kv.num_heads, ", ", kv.head_dim, "]");
  check(args.k.dtype == args.v.dtype, "store_kv: k is ", name_of(args.k.dtype), ", v is ", name_of(args.v.dtype));
  row_positions_.assign(static_cast<size_t>(rows), -1);  // here: byte offset of the token in a plane
  for_each_row("store_kv", args.step, rows, [&](int64_t row, int32_t slot, int64_t position) {
    const int32_t block = block_of("store_kv", *args.step->slots, slot, position, kv.block_tokens, kv.num_blocks);
    row_positions_[static_cast<size_t>(row)] = block * kv.block_stride + position % kv.block_tokens * kv.token_stride;
  });
  with_type("store_kv", args.k.dtype, args.k.data, [&](auto* typed) {
    using From = std::remove_pointer_t<decltype(typed)>;
    with_type("store_kv", kv.dtype, kv.base, [&](auto* stored) {
      using To = std::remove_pointer_t<decltype(stored)>;
      for_rows(rows, 2 * int64_t{kv.num_heads} * kv.head_dim, [&](int64_t row, int) {
        const int64_t offset = row_positions_[static_cast<size_t>(row)];
        if (offset < 0) return;  // of no segment
        const Tensor* const planes[2] = {&args.k, &args.v};
        for (int plane = 0; plane < 2; ++plane)
          for (int head = 0; head < kv.num_heads; ++head)
            store_vector(
                planes[plane]->template as<From>() + row * planes[plane]->stride[0] + head * planes[plane]->stride[1],
                reinterpret_cast<To*>(kv.base + offset + kv.plane_offset[plane] + head * kv.head_stride), kv.head_dim);
      });
    });
  });
}

}  // namespace rtp_llm::cpu
