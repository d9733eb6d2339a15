#include "device_fixture.h"

using namespace rtp_llm;
using namespace rtp_llm::testing;

namespace {

// q, k, v of one sequence, and attention over them by any schedule.
struct Problem {
  Problem(int num_positions, int num_heads, int num_kv_heads, int dim, DType kv_type)
      : positions(num_positions),
        heads(num_heads),
        kv_heads(num_kv_heads),
        head_dim(dim),
        dtype(kv_type),
        q(random_tensor(DType::kF32, {positions, heads, head_dim}, 1)),
        k(random_tensor(DType::kF32, {positions, kv_heads, head_dim}, 2)),
        v(random_tensor(DType::kF32, {positions, kv_heads, head_dim}, 3)) {}

  // In chunks of `chunk` rows, in the decode form where asked for. The sequence sits in slot 1 of 3.
  Owned attend(Ops& ops, int chunk, int block_tokens, Form form, bool workspace = true) const {
    PagedSequences sequences(3, positions, block_tokens, kv_heads, head_dim, dtype);
    const Owned out(DType::kF32, {positions, int64_t{heads} * head_dim});
    const int64_t bytes = ops.attention_workspace_bytes(chunk, heads, kv_heads, head_dim, positions);
    const Owned space(DType::kU8, {bytes});
    for (int first = 0; first < positions; first += chunk) {
      const int rows = std::min(chunk, positions - first);
      const Segment segments[] = {{.slot = 1, .first_row = 0, .rows = rows, .form = form}};
      const Step step(sequences.slots, segments);
      ops.store_kv(
          {.k = k.view().rows(first, rows), .v = v.view().rows(first, rows), .kv = sequences.kv, .step = step});
      const AttentionArgs args{.q = q.view().rows(first, rows),
                               .kv = sequences.kv,
                               .step = step,
                               .scale = scale,
                               .out = out.view().rows(first, rows),
                               .workspace = workspace ? space.view() : Tensor{}};
      form == Form::kPrefill ? ops.paged_attention_prefill(args) : ops.paged_attention_decode(args);
      ops.advance({.step = step});
    }
    CHECK_EQ(sequences.seq_len.as<int32_t>()[1], positions);
    return out;
  }

  double kv_at(const Owned& x, int64_t position, int head, int d) const {
    const double value = x.at((position * kv_heads + head) * head_dim + d);
    return dtype == DType::kBF16 ? to_f32(to_bf16(static_cast<float>(value))) : value;
  }

  std::vector<double> reference(int64_t position, int head) const {
    const int kv_head = head / (heads / kv_heads);
    std::vector<double> scores, out(static_cast<size_t>(head_dim));
    for (int64_t j = 0; j <= position; ++j) {
      double dot = 0;
      for (int d = 0; d < head_dim; ++d)
        dot += q.at((position * heads + head) * head_dim + d) * kv_at(k, j, kv_head, d);
      scores.push_back(dot * scale);
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - top);
    for (int64_t j = 0; j <= position; ++j)
      for (int d = 0; d < head_dim; ++d)
        out[static_cast<size_t>(d)] += scores[static_cast<size_t>(j)] / sum * kv_at(v, j, kv_head, d);
    return out;
  }

  int positions, heads, kv_heads, head_dim;
  DType dtype;
  float scale = 0.2f;
  Owned q, k, v;
};

}  // namespace

TEST(attention_of_one_position_returns_its_v) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    const Problem problem(1, 4, 2, 16, DType::kF32);
    const Owned out = problem.attend(ops, 1, 16, Form::kDecode);
    for (int head = 0; head < 4; ++head)
      for (int d = 0; d < 16; ++d) CHECK_EQ(out.at(head * 16 + d), problem.v.at(head / 2 * 16 + d));
  });
}

// Two positions with equal scores: the mean of their v.
TEST(attention_weighs_equal_scores_equally) {
  on_each_isa([](const std::string& isa) {
    Problem problem(2, 1, 1, 2, DType::kF32);
    const float q[] = {0, 0, 0, 0}, v[] = {1, 2, 3, 6};
    std::copy_n(q, 4, problem.q.as<float>());
    std::copy_n(v, 4, problem.v.as<float>());
    const Owned out = problem.attend(device_of(isa).ops(), 2, 16, Form::kPrefill);
    CHECK_EQ(std::vector<float>(out.as<float>(), out.as<float>() + 4), std::vector<float>{1, 2, 2, 4});
  });
}

TEST(attention_is_close_to_double_over_stretches_and_head_sizes) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    for (auto [heads, kv_heads, dim] : {std::tuple{4, 4, 32}, {7, 1, 64}, {2, 1, 80}, {3, 1, 128}, {2, 2, 20}})
      for (DType dtype : {DType::kF32, DType::kBF16}) {
        const Problem problem(1100, heads, kv_heads, dim, dtype);
        const Owned out = problem.attend(ops, 1100, 16, Form::kPrefill);
        for (int64_t position : {0, 1, 63, 64, 65, 511, 512, 513, 1024, 1099})
          for (int head = 0; head < heads; ++head) {
            const std::vector<double> expected = problem.reference(position, head);
            for (int d = 0; d < dim; ++d)
              CHECK_NEAR(out.at((position * heads + head) * dim + d), expected[static_cast<size_t>(d)], 5e-6);
          }
      }
  });
}

// The numerics contract: chunks, block sizes, threads and forms leave no trace.
TEST(attention_gives_the_same_bits_for_every_chunk_block_size_thread_count_and_form) {
  on_each_isa([](const std::string& isa) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      const Problem problem(600, 4, 2, 32, dtype);
      const Owned expected = problem.attend(device_of(isa).ops(), 600, 16, Form::kPrefill);
      for (int threads : {1, 2}) {
        Ops& ops = device_of(isa, threads).ops();
        for (int chunk : {7, 64, 600}) CHECK(same_bits(expected, problem.attend(ops, chunk, 16, Form::kPrefill)));
        for (int block_tokens : {8, 16, 64})
          CHECK(same_bits(expected, problem.attend(ops, 600, block_tokens, Form::kPrefill)));
        for (bool workspace : {false, true})
          CHECK(same_bits(expected, problem.attend(ops, 1, 16, Form::kDecode, workspace)));
      }
      CHECK(same_bits(expected, problem.attend(device_of(isa).ops(), 1, 8, Form::kPrefill)));
    }
  });
}

TEST(attention_of_a_row_ignores_its_batch_mates_and_what_lies_beyond_its_position) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa, 2).ops();
    constexpr int kSequences = 40, kDim = 32;
    PagedSequences sequences(kSequences, 700, 16, 1, kDim, DType::kF32);
    std::mt19937 random(5);
    for (int slot = 0; slot < kSequences; ++slot)
      for (int64_t position = 0; position < 700; ++position)
        for (int plane : {0, 1})
          for (int d = 0; d < kDim; ++d)
            reinterpret_cast<float*>(sequences.vector_at(slot, plane, 0, position))[d] =
                std::uniform_real_distribution<float>(-1, 1)(random);
    const Owned q = random_tensor(DType::kF32, {kSequences, 2, kDim}, 1);
    std::vector<Segment> segments;
    for (int slot = 0; slot < kSequences; ++slot) {
      sequences.seq_len.as<int32_t>()[slot] = static_cast<int32_t>(random() % 690);
      segments.push_back({.slot = slot, .first_row = slot, .rows = 1, .form = Form::kDecode});
    }
    const Owned together(DType::kF32, {kSequences, 2 * kDim}), alone(DType::kF32, {kSequences, 2 * kDim});
    ops.paged_attention_decode({.q = q, .kv = sequences.kv, .step = Step(sequences.slots, segments), .out = together});
    const float nan = std::nanf("");
    for (int slot = 0; slot < kSequences; ++slot) {
      for (int64_t position = sequences.seq_len.as<int32_t>()[slot] + 1; position < 700; ++position)
        for (int plane : {0, 1}) std::memcpy(sequences.vector_at(slot, plane, 0, position), &nan, 4);
      ops.paged_attention_decode({.q = q,
                                  .kv = sequences.kv,
                                  .step = Step(sequences.slots, std::span(&segments[static_cast<size_t>(slot)], 1)),
                                  .out = alone});
    }
    CHECK(same_bits(together, alone));
  });
}

TEST(each_form_of_attention_computes_the_rows_of_its_form_only) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    PagedSequences sequences(2, 64, 16, 2, 16, DType::kF32);
    const Owned q = random_tensor(DType::kF32, {3, 4, 16}, 1), kv = random_tensor(DType::kF32, {3, 2, 16}, 2);
    const Segment segments[] = {{.slot = 0, .first_row = 0, .rows = 2},
                                {.slot = 1, .first_row = 2, .rows = 1, .form = Form::kDecode}};
    const Step step(sequences.slots, segments);
    ops.store_kv({.k = kv, .v = kv, .kv = sequences.kv, .step = step});
    const Owned prefills(DType::kF32, {3, 64}), decodes(DType::kF32, {3, 64});
    ops.paged_attention_prefill({.q = q, .kv = sequences.kv, .step = step, .out = prefills});
    ops.paged_attention_decode({.q = q, .kv = sequences.kv, .step = step, .out = decodes});
    const Owned untouched(DType::kF32, {3, 64});
    for (int row = 0; row < 3; ++row) {
      CHECK_EQ(same_row(prefills, row, untouched, row), row == 2);
      CHECK_EQ(same_row(decodes, row, untouched, row), row != 2);
    }
  });
}

TEST(attention_refuses_what_does_not_fit) {
  on_each_isa([](const std::string& isa) {
    Ops& ops = device_of(isa).ops();
    PagedSequences sequences(2, 64, 16, 2, 16, DType::kF32);
    const Owned q = random_tensor(DType::kF32, {1, 4, 16}, 1), out(DType::kF32, {1, 64});
    const auto run = [&](Segment segment) {
      ops.paged_attention_decode(
          {.q = q, .kv = sequences.kv, .step = Step(sequences.slots, std::span(&segment, 1)), .out = out});
    };
    CHECK_THROWS_WITH(run({.slot = 2, .rows = 1, .form = Form::kDecode}), InvalidArgument, "slot 2 out of range");
    CHECK_THROWS_WITH(run({.slot = 0, .rows = 2, .form = Form::kDecode}), InvalidArgument, "rows [0, 2)");
    sequences.seq_len.as<int32_t>()[0] = 64;
    CHECK_THROWS_WITH(run({.slot = 0, .rows = 1, .form = Form::kDecode}), InvalidArgument, "position 64 of slot 0");
    sequences.seq_len.as<int32_t>()[0] = 20;
    sequences.tables.as<int32_t>()[0] = 812;
    CHECK_THROWS_WITH(run({.slot = 0, .rows = 1, .form = Form::kDecode}), InvalidArgument,
                      "block 812 out of range, pool has 8");
  });
}
