// Norms, store_kv, gather_rows, add, advance and the level-1 compositions.
#include "device/rope.h"
#include "device_fixture.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

TEST(rms_norm_divides_by_the_root_mean_square) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned x = floats({1, 4}, {1, 1, 5, 3}), weight = floats({4}, {1, 2, 1, 1}), out(DType::kF32, {1, 4});
    ops.rms_norm({.x = x, .weight = weight, .epsilon = 0.0f, .out = out});  // mean square 9
    for (int i = 0; i < 4; ++i) CHECK_NEAR(out.at(i), x.at(i) / 3 * weight.at(i), 1e-7);
  });
}

TEST(layer_norm_subtracts_the_mean_and_adds_the_bias) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned x = floats({1, 4}, {1, 3, 5, 7}), weight = floats({4}, {1, 1, 2, 1}), bias = floats({4}, {0, 0, 0, 10});
    const Owned out(DType::kF32, {1, 4});
    ops.layer_norm({.x = x, .weight = weight, .bias = bias, .epsilon = 0.0f, .out = out});  // mean 4, variance 5
    const double scale = 1 / std::sqrt(5.0), expected[] = {-3 * scale, -scale, 2 * scale, 3 * scale + 10};
    for (int i = 0; i < 4; ++i) CHECK_NEAR(out.at(i), expected[i], 1e-6);
  });
}

TEST(norms_are_close_to_double_and_independent_of_other_rows_and_threads) {
  on_each_isa([](const std::string& isa) {
    for (int64_t features : {1, 15, 16, 100, 896}) {
      const Owned x = random_tensor(DType::kF32, {37, features}, 1, 3.0f),
                  weight = random_tensor(DType::kF32, {features}, 2);
      const Owned all(DType::kF32, {37, features}), one(DType::kF32, {37, features}),
          half(DType::kBF16, {37, features});
      const auto args = [&](const Tensor& in, const Tensor& out) {
        return NormArgs{.x = in, .weight = weight, .epsilon = 1e-6f, .out = out};
      };
      device_of(isa, 2).ops().rms_norm(args(x, all));
      device_of(isa).ops().rms_norm(args(x, half));
      for (int64_t row = 0; row < 37; ++row) {
        device_of(isa).ops().rms_norm(args(x.view().rows(row, 1), one.view().rows(row, 1)));
        double squares = 0;
        for (int64_t i = 0; i < features; ++i) squares += x.at(row * features + i) * x.at(row * features + i);
        const double scale = 1 / std::sqrt(squares / static_cast<double>(features) + 1e-6);
        for (int64_t i = 0; i < features; ++i) {
          const int64_t at = row * features + i;
          CHECK_NEAR(all.at(at), x.at(at) * scale * weight.at(i), 1e-6 * (1 + std::fabs(all.at(at))));
          CHECK_EQ(half.as<BFloat16>()[at].bits, to_bf16(all.as<float>()[at]).bits);
        }
      }
      CHECK(same_bits(all, one));
      device_of(isa, 2).ops().layer_norm(args(x, all));
      for (int64_t row = 0; row < 37; ++row)
        device_of(isa).ops().layer_norm(args(x.view().rows(row, 1), one.view().rows(row, 1)));
      CHECK(same_bits(all, one));
    }
  });
}

TEST(store_kv_rounds_to_the_pools_type_at_the_right_place) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      PagedSequences sequences(2, 40, 8, 2, 20, dtype);
      sequences.seq_len.as<int32_t>()[1] = 6;
      const Owned k = random_tensor(DType::kF32, {5, 2, 20}, 1), v = random_tensor(DType::kF32, {5, 2, 20}, 2);
      const Segment segments[] = {{.slot = 1, .first_row = 0, .rows = 4}, {.slot = 0, .first_row = 4, .rows = 1}};
      ops.store_kv({.k = k, .v = v, .kv = sequences.kv, .step = Step(sequences.slots, segments)});
      for (int row = 0; row < 5; ++row)
        for (int plane : {0, 1})
          for (int head : {0, 1})
            for (int d = 0; d < 20; ++d) {
              const uint8_t* vector = sequences.vector_at(row < 4, plane, head, row < 4 ? 6 + row : 0);
              const float given = (plane == 0 ? k : v).as<float>()[(row * 2 + head) * 20 + d];
              if (dtype == DType::kF32)
                CHECK_EQ(reinterpret_cast<const float*>(vector)[d], given);
              else
                CHECK_EQ(reinterpret_cast<const BFloat16*>(vector)[d].bits, to_bf16(given).bits);
            }
      size_t written = 0;
      for (uint8_t byte : sequences.pool) written += byte != 0;
      CHECK(written <= static_cast<size_t>(5 * 2 * 2 * 20 * size_of(dtype)));
    }
  });
}

TEST(gather_rows_add_and_advance_do_what_they_say) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned x = floats({3, 2}, {1, 2, 3, 4, 5, 6}), out(DType::kF32, {2, 2});
    ops.gather_rows({.x = x, .rows = ints({2, 0}), .out = out});
    CHECK_EQ(std::vector<float>(out.as<float>(), out.as<float>() + 4), std::vector<float>{5, 6, 1, 2});
    CHECK_THROWS_WITH(ops.gather_rows({.x = x, .rows = ints({2, 3}), .out = out}), InvalidArgument, "row 3");
    ops.add(out, floats({2, 2}, {1, 1, 1, 1}));
    CHECK_EQ(out.at(1), 7.0);
    PagedSequences sequences(2, 16, 16, 1, 16, DType::kF32);
    const Segment segments[] = {{.slot = 1, .rows = 5}, {.slot = 0, .rows = 1}};
    ops.advance({.step = Step(sequences.slots, segments)});
    CHECK_EQ(sequences.seq_len.as<int32_t>()[1], 5);
    CHECK_EQ(sequences.seq_len.as<int32_t>()[0], 1);
  });
}

TEST(add_rms_norm_adds_to_the_stream_first) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned x = floats({1, 2}, {1, 2}), delta = floats({1, 2}, {2, 2}), weight = floats({2}, {1, 1}),
                out(DType::kF32, {1, 2});
    ops.add_rms_norm({.x = x, .delta = delta, .weight = weight, .epsilon = 0.0f, .out = out.view()});
    CHECK_EQ(x.at(0), 3.0);
    CHECK_NEAR(out.at(1), 4 / std::sqrt(12.5), 1e-6);
  });
}

// Random activations through qkv_rope_store: rows alone and in one batch leave the same bits in q and in the pool.
TEST(qkv_rope_store_gives_the_same_bits_for_every_chunking) {
  on_each_isa([](const std::string& isa) {
    constexpr int kRows = 40, kHeads = 4, kKvHeads = 2, kDim = 24, kWidth = (kHeads + 2 * kKvHeads) * kDim;
    const std::vector<float> table = rope_table(kDim, 10000.0);
    const Owned inv_freq = floats({kDim / 2}, table);
    const Owned norm = random_tensor(DType::kF32, {kDim}, 9), input = random_tensor(DType::kF32, {kRows, kWidth}, 8);
    std::vector<std::vector<uint8_t>> pools;
    std::vector<Owned> outputs;
    for (int chunk : {1, 7, 40})
      for (int threads : {1, 2}) {
        PagedSequences sequences(1, kRows, 16, kKvHeads, kDim, DType::kBF16);
        Owned qkv(DType::kF32, {kRows, kWidth});
        std::memcpy(qkv.as<float>(), input.as<float>(), static_cast<size_t>(input.num_bytes()));
        for (int first = 0; first < kRows; first += chunk) {
          const Segment segments[] = {{.slot = 0, .rows = std::min(chunk, kRows - first)}};
          Ops& ops = device_of(isa, threads).ops();
          const Step step(sequences.slots, segments);
          ops.qkv_rope_store({.qkv = qkv.view().rows(first, segments[0].rows),
                              .num_heads = kHeads,
                              .num_kv_heads = kKvHeads,
                              .head_dim = kDim,
                              .q_norm = norm,
                              .k_norm = norm,
                              .inv_freq = inv_freq,
                              .kv = sequences.kv,
                              .step = step});
          ops.advance({.step = step});
        }
        pools.push_back(sequences.pool);
        outputs.push_back(qkv);
        CHECK(pools.back() == pools.front());
        CHECK(same_bits(outputs.back().view().columns(0, kHeads * kDim),
                        outputs.front().view().columns(0, kHeads * kDim)));
      }
  });
}
