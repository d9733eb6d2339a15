// The tiles of a prefill: aligned runs of kTile positions of one sequence.
//
// A tile begins at an absolute multiple of kTile, so its rows see the same blocks of the fold and only its last block
// is masked. The first and last tile of a segment may lie partly outside it; such rows are computed from whatever is
// there and not written.
#pragma once

#include "device/cuda/ptx.cuh"
#include "device/slots.h"

namespace rtp_llm::cuda {

struct PrefillTile {
  int slot;
  int position;    // of the tile's row 0
  int row;         // of the step, of the tile's row 0; may be negative
  int begin, end;  // positions of the segment: rows outside aren't written, positions from `end` on aren't stored
};

struct TileList {
  const Segment* segments;
  const int32_t* count;
  const int32_t* seq_len;

  // Tile `index`, and false behind the last. Of each segment the last tile comes first: it has the most blocks. By a
  // whole warp; all lanes get the answer.
  template <int kTile>
  __device__ bool find(int index, PrefillTile& tile) const {
    const int lane = threadIdx.x % 32, total = *count;
    for (int base = 0; base < total; base += 32) {
      Segment segment{};
      int begin = 0, tiles = 0;
      if (base + lane < total) {
        segment = segments[base + lane];
        begin = seq_len[segment.slot];
        if (segment.rows > 0) tiles = (begin + segment.rows - 1) / kTile - begin / kTile + 1;
      }
      int through = tiles;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int left = __shfl_up_sync(~0u, through, step);
        if (lane >= step) through += left;
      }
      const uint32_t behind = __ballot_sync(~0u, through > index);
      if (behind != 0) {
        const int holder = __ffs(static_cast<int>(behind)) - 1;
        const int end = begin + segment.rows;
        const int position = ((end - 1) / kTile - (index - (through - tiles))) * kTile;
        tile = {__shfl_sync(~0u, segment.slot, holder), __shfl_sync(~0u, position, holder),
                __shfl_sync(~0u, segment.first_row + position - begin, holder), __shfl_sync(~0u, begin, holder),
                __shfl_sync(~0u, end, holder)};
        return true;
      }
      index -= __shfl_sync(~0u, through, 31);
    }
    return false;
  }
};

}  // namespace rtp_llm::cuda
