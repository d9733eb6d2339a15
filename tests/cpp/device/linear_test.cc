#include "device/numerics_digest.h"
#include "device_fixture.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

float rounded(float value, DType dtype) { return dtype == DType::kBF16 ? to_f32(to_bf16(value)) : value; }

double reference(const Owned& x, const Owned& weight, DType dtype, int64_t row, int64_t feature) {
  const int64_t k = weight.view().shape[1];
  double sum = 0;
  for (int64_t i = 0; i < k; ++i)
    sum += static_cast<double>(rounded(static_cast<float>(x.at(row * k + i)), dtype)) *
           rounded(static_cast<float>(weight.at(feature * k + i)), dtype);
  return sum;
}

}  // namespace

TEST(linear_multiplies_adds_bias_and_residual) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned weight = floats({2, 3}, {1, 2, 3, 4, 5, 6});
    const Owned bias = floats({2}, {0.5f, -0.5f});
    const Owned x = floats({2, 3}, {1, 0, 2, -1, 1, 0});
    const Owned residual = floats({2, 2}, {10, 20, 30, 40});
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const auto w = packed(ops, weight, dtype, &bias);
      const Owned out(DType::kF32, {2, 2});
      ops.linear({.x = x, .weight = w.get(), .out = out});
      CHECK_EQ(std::vector<float>(out.as<float>(), out.as<float>() + 4), std::vector<float>{7.5f, 15.5f, 1.5f, 0.5f});
      ops.linear({.x = x, .weight = w.get(), .out = out, .residual = residual});
      CHECK_EQ(std::vector<float>(out.as<float>(), out.as<float>() + 4),
               std::vector<float>{17.5f, 35.5f, 31.5f, 40.5f});
    }
  });
}

TEST(linear_is_close_to_double_for_odd_and_ragged_shapes) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {17, 7}, {64, 64}, {130, 33}, {96, 255}}) {
      for (DType dtype : {DType::kF32, DType::kBF16})
        for (DType x_type : {DType::kF32, DType::kBF16}) {
          const Owned weight = random_tensor(dtype, {n, k}, 1), x = random_tensor(x_type, {5, k}, 2);
          const auto w = packed(ops, weight, dtype);
          const Owned out(DType::kF32, {5, n}), out16(DType::kBF16, {5, n});
          ops.linear({.x = x, .weight = w.get(), .out = out});
          ops.linear({.x = x, .weight = w.get(), .out = out16});
          for (int64_t row = 0; row < 5; ++row)
            for (int64_t feature = 0; feature < n; ++feature) {
              CHECK_NEAR(out.at(row * n + feature), reference(x, weight, dtype, row, feature),
                         2e-6 * static_cast<double>(k) + 2e-6);
              CHECK_EQ(out16.as<BFloat16>()[row * n + feature].bits, to_bf16(out.as<float>()[row * n + feature]).bits);
            }
        }
    }
  });
}

TEST(linear_takes_strided_rows_and_leaves_the_rest_alone) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned weight = random_tensor(DType::kF32, {20, 8}, 1);
    const Owned x = random_tensor(DType::kF32, {3, 16}, 2);
    const Owned plain(DType::kF32, {3, 20}), wide(DType::kF32, {3, 64});
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const auto w = packed(ops, weight, dtype);
      ops.linear({.x = x.view().columns(8, 8), .weight = w.get(), .out = plain});
      std::fill_n(wide.as<float>(), wide.numel(), 99.0f);
      ops.linear({.x = x.view().columns(8, 8), .weight = w.get(), .out = wide.view().columns(5, 20)});
      for (int64_t row = 0; row < 3; ++row)
        for (int64_t i = 0; i < 64; ++i)
          CHECK_EQ(wide.at(row * 64 + i), i >= 5 && i < 25 ? plain.at(row * 20 + i - 5) : 99.0);
    }
  });
}

// The numerics contract: a row's bits don't depend on M, its place or the threads.
TEST(linear_gives_a_row_the_same_bits_for_every_batch_order_and_thread_count) {
  on_each_isa([](const std::string& isa) {
    constexpr int64_t kRows = 512, kN = 200, kK = 97;
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const Owned weight = random_tensor(dtype, {kN, kK}, 3), bias = random_tensor(dtype, {kN}, 4);
      const Owned x = random_tensor(DType::kF32, {kRows, kK}, 5);
      const Owned residual = random_tensor(DType::kF32, {kRows, kN}, 6);
      const auto one = packed(device_of(isa).ops(), weight, dtype, &bias);
      const Owned alone(DType::kF32, {kRows, kN});
      for (int64_t row = 0; row < kRows; ++row)
        device_of(isa).ops().linear({.x = x.view().rows(row, 1),
                                     .weight = one.get(),
                                     .out = alone.view().rows(row, 1),
                                     .residual = residual.view().rows(row, 1)});
      std::vector<int64_t> sizes = {100, 512};
      for (int64_t m = 1; m <= 64; ++m) sizes.push_back(m);
      for (int threads : {1, 2}) {
        Ops& ops = device_of(isa, threads).ops();
        const auto w = packed(ops, weight, dtype, &bias);
        for (int64_t m : sizes) {
          std::vector<int64_t> order(kRows);
          std::iota(order.begin(), order.end(), 0);
          std::shuffle(order.begin(), order.end(), std::mt19937(static_cast<uint32_t>(m)));
          const Owned some(DType::kF32, {m, kK}), out(DType::kF32, {m, kN});
          for (int64_t i = 0; i < m; ++i) {
            std::memcpy(some.as<float>() + i * kK, x.as<float>() + order[i] * kK, kK * 4);
            std::memcpy(out.as<float>() + i * kN, residual.as<float>() + order[i] * kN, kN * 4);
          }
          ops.linear({.x = some, .weight = w.get(), .out = out, .residual = out});  // in place
          for (int64_t i = 0; i < m; ++i) CHECK(same_row(out, i, alone, order[i]));
        }
      }
    }
  });
}

// K longer than a block of it, more rows than a block of them, and K that is no whole number of steps.
TEST(linear_gives_a_row_the_same_bits_in_blocks_of_k_and_of_rows) {
  on_each_isa([](const std::string& isa) {
    constexpr int64_t kRows = 600, kN = 130, kK = 1107;
    const Owned weight = random_tensor(DType::kBF16, {kN, kK}, 3), x = random_tensor(DType::kF32, {kRows, kK}, 5);
    for (int threads : {1, 2}) {
      Ops& ops = device_of(isa, threads).ops();
      const auto w = packed(ops, weight, DType::kBF16);
      const Owned alone(DType::kF32, {1, kN});
      for (int64_t m : {7, 17, 31, 33, 48, 200, 511, 513, 600}) {
        const Owned out(DType::kF32, {m, kN});
        ops.linear({.x = x.view().rows(0, m), .weight = w.get(), .out = out});
        for (int64_t row = 0; row < m; row += std::max<int64_t>(1, m / 20)) {
          ops.linear({.x = x.view().rows(row, 1), .weight = w.get(), .out = alone});
          CHECK(same_row(out, row, alone, 0));
        }
        ops.linear({.x = x.view().rows(m - 1, 1), .weight = w.get(), .out = alone});
        CHECK(same_row(out, m - 1, alone, 0));
      }
    }
  });
}

// Each leaf by itself is a product of its columns alone.
TEST(row_parallel_weights_are_summed_as_a_binary_tree_of_leaves_of_k) {
  on_each_isa([](const std::string& isa) {
    constexpr int64_t kRows = 9, kN = 70, kK = 11 * 64 + 32;  // 12 blocks, the last one half
    Ops& chain = device_of(isa).ops();
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const Owned weight = random_tensor(dtype, {kN, kK}, 3), x = random_tensor(dtype, {kRows, kK}, 5);
      for (int leaves : {1, 2, 4}) {
        std::vector<Owned> sums;
        for (int leaf = 0; leaf < leaves; ++leaf) {
          const int64_t begin = leaf * 12 / leaves * 64, end = std::min<int64_t>(kK, (leaf + 1) * 12 / leaves * 64);
          const Owned columns(dtype, {kN, end - begin});
          for (int64_t row = 0; row < kN; ++row)
            std::memcpy(columns.view().rows(row, 1).data, weight.view().rows(row, 1).columns(begin, end - begin).data,
                        static_cast<size_t>((end - begin) * size_of(dtype)));
          const auto part = packed(chain, columns, dtype);
          chain.linear({.x = x.view().columns(begin, end - begin),
                        .weight = part.get(),
                        .out = sums.emplace_back(DType::kF32, std::initializer_list<int64_t>{kRows, kN})});
        }
        Ops& ops = device_of(isa, 1, leaves).ops();
        const auto tree = packed(ops, weight, dtype, nullptr, true);
        const Owned out(DType::kF32, {kRows, kN});
        ops.linear({.x = x, .weight = tree.get(), .out = out});
        for (int64_t i = 0; i < out.numel(); ++i) {
          const auto sum = [&](int leaf) { return sums[static_cast<size_t>(leaf)].as<float>()[i]; };
          const float expected = leaves == 1   ? sum(0)
                                 : leaves == 2 ? sum(0) + sum(1)
                                               : (sum(0) + sum(1)) + (sum(2) + sum(3));
          CHECK_EQ(__builtin_bit_cast(uint32_t, out.as<float>()[i]), __builtin_bit_cast(uint32_t, expected));
        }
      }
    }
  });
}

TEST(a_tree_of_leaves_gives_a_row_the_same_bits_for_every_number_of_rows_and_threads) {
  on_each_isa([](const std::string& isa) {
    constexpr int64_t kRows = 513, kN = 130;
    for (int64_t features : {40, 1107})  // of fewer blocks than leaves, too
      for (int leaves : {2, 4})
        for (DType dtype : {DType::kF32, DType::kBF16}) {
          const Owned weight = random_tensor(dtype, {kN, features}, 3);
          const Owned x = random_tensor(DType::kF32, {kRows, features}, 5);
          const auto one = packed(device_of(isa, 1, leaves).ops(), weight, dtype, nullptr, true);
          const Owned alone(DType::kF32, {1, kN});
          for (int threads : {1, 2}) {
            Ops& ops = device_of(isa, threads, leaves).ops();
            const auto w = packed(ops, weight, dtype, nullptr, true);
            for (int64_t m : {2, 7, 33, 200, 513}) {
              const Owned out(DType::kF32, {m, kN});
              ops.linear({.x = x.view().rows(0, m), .weight = w.get(), .out = out});
              for (int64_t row = 0; row < m; row += std::max<int64_t>(1, m / 8)) {
                device_of(isa, 1, leaves).ops().linear({.x = x.view().rows(row, 1), .weight = one.get(), .out = alone});
                CHECK(same_row(out, row, alone, 0));
              }
            }
          }
        }
  });
}

TEST(only_1_2_and_4_leaves_are_possible_and_their_number_shows_in_the_digest) {
  CHECK_THROWS_WITH(open_device("cpu", {.isa = "generic", .tree_leaves = 3}, library_dir()), InvalidArgument,
                    "tree_leaves must be 1, 2 or 4, got 3");
  const auto digest = [&](int leaves) {
    return numerics_digest(device_of("generic", 1, leaves), DType::kBF16, DType::kBF16);
  };
  CHECK_EQ(digest(0), digest(2));
  CHECK(digest(2) != digest(1));
  CHECK(digest(4) != digest(2));
}

// docs/numerics.md, "Linear on AMX", written out. fmaf is fused, as the tiles are.
TEST(linear_on_amx_sums_even_and_odd_products_apart) {
  on_each_isa([](const std::string& isa) {
    if (isa != "amxbf16") return;
    constexpr int64_t kRows = 20, kN = 70, kK = 112;
    Ops& ops = device_of(isa).ops();
    const Owned weight = random_tensor(DType::kBF16, {kN, kK}, 3), x = random_tensor(DType::kBF16, {kRows, kK}, 5);
    const auto w = packed(ops, weight, DType::kBF16);
    const Owned out(DType::kF32, {kRows, kN});
    ops.linear({.x = x, .weight = w.get(), .out = out});
    for (int64_t row = 0; row < kRows; ++row)
      for (int64_t feature = 0; feature < kN; ++feature) {
        float sum = 0;
        for (int64_t begin = 0; begin < kK; begin += 32) {
          float part[2] = {};
          for (int64_t k = begin; k < std::min(begin + 32, kK); ++k)
            part[k % 2] = std::fma(static_cast<float>(x.at(row * kK + k)),
                                   static_cast<float>(weight.at(feature * kK + k)), part[k % 2]);
          sum += part[0] + part[1];
        }
        CHECK_EQ(out.as<float>()[row * kN + feature], sum);
      }
  });
}

// Its neighbours' infinities and NaNs, in the pads of K too, don't reach a row.
TEST(linear_of_a_row_ignores_what_lies_beside_it) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    for (int64_t k : {31, 32, 50, 64}) {
      const Owned weight = random_tensor(DType::kBF16, {20, k}, 3), x = random_tensor(DType::kBF16, {3, 2 * k}, 5);
      const auto w = packed(ops, weight, DType::kBF16);
      const Owned clean(DType::kF32, {1, 20}), out(DType::kF32, {3, 20});
      ops.linear({.x = x.view().rows(1, 1).columns(0, k), .weight = w.get(), .out = clean});
      for (int64_t i = 0; i < 2 * k; ++i) {
        x.set(i, INFINITY), x.set(4 * k + i, NAN);
        if (i >= k) x.set(2 * k + i, NAN);
      }
      ops.linear({.x = x.view().columns(0, k), .weight = w.get(), .out = out});
      CHECK(same_row(out, 1, clean, 0));
    }
  });
}

TEST(gated_mlp_has_the_bits_of_its_ops_one_by_one) {
  on_each_isa([](const std::string& isa) {
    constexpr int64_t kHidden = 70;
    for (auto [dtype, inter] : {std::pair{DType::kBF16, int64_t{192}}, {DType::kF32, 192}, {DType::kBF16, 90}})
      for (int threads : {1, 2}) {
        Ops& ops = device_of(isa, threads).ops();
        const Owned bias = random_tensor(DType::kF32, {2 * inter}, 1);
        const auto gate_up = packed(ops, random_tensor(dtype, {2 * inter, kHidden}, 2), dtype, &bias);
        const auto down = packed(ops, random_tensor(dtype, {kHidden, inter}, 3), dtype);
        for (int64_t rows : {1, 7, 33, 96, 200, 530})
          for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
            const Owned x = random_tensor(dtype, {rows, kHidden}, 4);
            const Owned wide(DType::kF32, {rows, 2 * inter}), activated(dtype, {rows, inter});
            const Owned fused(dtype, {rows, inter}), out(DType::kF32, {rows, kHidden});
            const Owned expected(DType::kF32, {rows, kHidden});
            ops.linear({.x = x, .weight = gate_up.get(), .out = wide});
            ops.gated_activation({.gate_up = wide, .activation = activation, .out = activated});
            ops.linear({.x = activated, .weight = down.get(), .out = expected});
            ops.gated_mlp({.x = x,
                           .gate_up = gate_up.get(),
                           .down = down.get(),
                           .activation = activation,
                           .gate_up_out = wide,
                           .activated = fused,
                           .out = out});
            CHECK(same_bits(activated, fused));
            CHECK(same_bits(out, expected));
          }
      }
  });
}

TEST(packing_in_any_chunks_and_parts_lays_out_the_same_weight) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Owned weight = random_tensor(DType::kF32, {150, 33}, 1);
    const Owned x = random_tensor(DType::kF32, {4, 33}, 2);
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const Owned whole(DType::kF32, {4, 150}), pieces(DType::kF32, {4, 150});
      const auto at_once = packed(ops, weight, dtype);
      auto packer =
          ops.pack({.name = "qkv", .in_features = 33, .parts = {{"q", 70}, {"k", 40}, {"v", 40}}, .dtype = dtype});
      packer->write_rows(2, 0, weight.view().rows(110, 40));
      packer->write_rows(0, 7, weight.view().rows(7, 63));
      packer->write_rows(0, 0, weight.view().rows(0, 7));
      packer->write_rows(1, 0, weight.view().rows(70, 40));
      const auto by_parts = packer->finish();
      ops.linear({.x = x, .weight = at_once.get(), .out = whole});
      ops.linear({.x = x, .weight = by_parts.get(), .out = pieces});
      CHECK(same_bits(whole, pieces));
    }
  });
}

TEST(packing_names_what_is_missing_doubled_or_out_of_range) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const LinearSpec spec{
        .name = "layers.0.qkv", .in_features = 4, .parts = {{"q", 2}, {"k", 1}}, .bias = true, .dtype = DType::kF32};
    const Owned rows = random_tensor(DType::kF32, {2, 4}, 1), wrong = random_tensor(DType::kF32, {1, 5}, 1);
    const Owned bias = random_tensor(DType::kF32, {2}, 1);
    auto packer = ops.pack(spec);
    packer->write_rows(0, 0, rows);
    packer->write_bias(0, bias);
    CHECK_THROWS_WITH(packer->write_rows(0, 1, rows.view().rows(0, 1)), InvalidArgument,
                      "row 1 of part 'q' written twice");
    CHECK_THROWS_WITH(packer->write_rows(1, 0, rows), InvalidArgument, "part 'k' has 1");
    CHECK_THROWS_WITH(packer->write_rows(1, 0, wrong), InvalidArgument, "needs rows of 4");
    CHECK_THROWS_WITH(packer->write_bias(1, bias), InvalidArgument, "must be [1], got 2");
    CHECK_THROWS_WITH(packer->finish(), InvalidArgument, "layers.0.qkv': row 0 of part 'k'");
    packer->write_rows(1, 0, rows.view().rows(0, 1));
    CHECK_THROWS_WITH(packer->finish(), InvalidArgument, "bias of part 'k' is missing");
  });
}

TEST(embedding_gathers_rows_of_the_packed_table_and_of_the_slot) {
  on_each_isa([](const std::string& isa) {
    for (int threads : {1, 2}) {
      Ops& ops = device_of(isa, threads).ops();
      const Owned table = random_tensor(DType::kBF16, {100, 33}, 1);
      PagedSequences sequences(2, 16, 16, 1, 16, DType::kF32);
      sequences.last_token.as<int32_t>()[1] = 42;
      const Segment segments[] = {{.slot = 0, .first_row = 0, .rows = 3},
                                  {.slot = 1, .first_row = 3, .rows = 1, .form = Form::kDecode}};
      const Step step(sequences.slots, segments);
      const Owned tokens = ints({5, 99, 0, kTokenFromSlot});
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        const auto w = packed(ops, table, dtype);
        for (DType out_type : {DType::kF32, DType::kBF16}) {
          const Owned out(out_type, {4, 33});
          ops.embedding({.tokens = tokens, .table = w.get(), .step = step, .out = out});
          const int ids[] = {5, 99, 0, 42};
          for (int row = 0; row < 4; ++row)
            for (int i = 0; i < 33; ++i) CHECK_EQ(out.at(row * 33 + i), table.at(ids[row] * 33 + i));
        }
        const Owned bad = ints({1, 100, 1, 1}), out(DType::kF32, {4, 33});
        CHECK_THROWS_WITH(ops.embedding({.tokens = bad, .table = w.get(), .step = step, .out = out}), InvalidArgument,
                          "token id 100 of row 1");
      }
    }
  });
}
