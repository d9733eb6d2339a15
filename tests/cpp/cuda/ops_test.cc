// Every op of the CUDA backend against the CPU's, on fresh random inputs; relative error of bf16 results at most 1e-2,
// of integers none.
#include <algorithm>
#include <bit>

#include "two_devices.h"

namespace rtp_llm {
namespace {

using testing::cpu;
using testing::fill_step;
using testing::fresh_seed;
using testing::gpu;
using testing::Owned;
using testing::Placed;
using testing::PoolShape;
using testing::random_tensor;
using testing::relative_error;
using testing::Run;
using testing::shape_of;
using testing::Side;
using testing::TokenRules;

constexpr double kTolerance = 1e-2;
constexpr DType kB = DType::kBF16;
constexpr DType kF = DType::kF32;

// Runs the body where there is a GPU.
#define ON_GPU                  \
  if (gpu() == nullptr) return; \
  Device& device = *gpu();      \
  Ops& ops = device.ops();      \
  (void)ops

TEST(norms_equal_the_cpus) {
  ON_GPU;
  for (int64_t features : {16, 64, 128, 1024, 4096, 12288})
    for (int64_t rows : {1, 7, 300}) {
      const Owned x = random_tensor(kB, {rows, features}, fresh_seed()),
                  weight = random_tensor(kF, {features}, fresh_seed());
      const Owned delta = random_tensor(kB, {rows, features}, fresh_seed()),
                  bias = random_tensor(kF, {features}, fresh_seed());
      const Placed gx(device, x), gd(device, delta), gw(device, weight), gb(device, bias), gn(device, x.view()),
          gl(device, x.view());
      const Placed cx(cpu(), x), cn(cpu(), shape_of(kF, {rows, features})), cl(cpu(), shape_of(kF, {rows, features}));
      ops.layer_norm({.x = gx, .weight = gw, .bias = gb, .epsilon = 1e-5f, .out = gl});
      cpu().ops().layer_norm({.x = cx, .weight = weight, .bias = bias, .epsilon = 1e-5f, .out = cl});
      CHECK(relative_error(gl.values(), cl.values()) < kTolerance);
      ops.add_rms_norm({.x = gx, .delta = gd, .weight = gw, .epsilon = 1e-6f, .out = gn.view()});
      cpu().ops().add_rms_norm({.x = cx, .delta = delta, .weight = weight, .epsilon = 1e-6f, .out = cn.view()});
      CHECK(gx.raw() == cx.raw());  // the stream: one sum, one rounding
      CHECK(relative_error(gn.values(), cn.values()) < kTolerance);
    }
}

// Of many rows a CTA takes several.
TEST(norms_of_many_rows_have_the_bits_of_few) {
  ON_GPU;
  constexpr int64_t kRows = 2500, kFew = 100;
  for (int64_t features : {64, 896, 4096}) {
    const Owned x = random_tensor(kB, {kRows, features}, fresh_seed()),
                delta = random_tensor(kB, {kRows, features}, fresh_seed()),
                weight = random_tensor(kF, {features}, fresh_seed());
    const Placed many(device, x), few(device, x), gd(device, delta), gw(device, weight), many_out(device, x.view()),
        few_out(device, x.view());
    const Tensor all = many, some = few, more = gd, all_out = many_out, some_out = few_out;
    ops.add_rms_norm({.x = all, .delta = more, .weight = gw, .epsilon = 1e-6f, .out = all_out});
    for (int64_t row = 0; row < kRows; row += kFew)
      ops.add_rms_norm({.x = some.rows(row, kFew),
                        .delta = more.rows(row, kFew),
                        .weight = gw,
                        .epsilon = 1e-6f,
                        .out = some_out.rows(row, kFew)});
    CHECK(many.raw() == few.raw());
    CHECK(many_out.raw() == few_out.raw());
  }
}

TEST(norms_of_heads_equal_the_cpus) {
  ON_GPU;
  const Owned x = random_tensor(kB, {9, 5, 128}, fresh_seed()), weight = random_tensor(kF, {128}, fresh_seed());
  const Placed gx(device, x), gw(device, weight), out(device, x.view()), cx(cpu(), x),
      expected(cpu(), shape_of(kF, {9, 5, 128}));
  ops.rms_norm({.x = gx, .weight = gw, .out = out});
  cpu().ops().rms_norm({.x = cx, .weight = weight, .out = expected});
  CHECK(relative_error(out.values(), expected.values()) < kTolerance);
}

TEST(rows_are_gathered_added_and_activated_as_on_the_cpu) {
  ON_GPU;
  for (int64_t features : {24, 1000, 4096}) {
    const int64_t rows = 37;
    const Owned x = random_tensor(kB, {rows, features}, fresh_seed()),
                more = random_tensor(kB, {rows, features}, fresh_seed());
    const Owned which = testing::ints({36, 0, 7, 7});
    const Placed gx(device, x), gm(device, more), gi(device, which), picked(device, shape_of(kB, {4, features}));
    const Placed cx(cpu(), x), cpicked(cpu(), shape_of(kB, {4, features}));
    ops.gather_rows({.x = gx, .rows = gi, .out = picked});
    cpu().ops().gather_rows({.x = cx, .rows = which, .out = cpicked});
    CHECK(picked.raw() == cpicked.raw());
    ops.add(gx, gm);
    cpu().ops().add(cx, more);
    CHECK(gx.raw() == cx.raw());
    const Owned gate_up = random_tensor(kB, {rows, 2 * features}, fresh_seed(), 3.0f);
    const Placed gg(device, gate_up);
    for (Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
      const Placed out(device, shape_of(kB, {rows, features})), expected(cpu(), shape_of(kB, {rows, features}));
      ops.gated_activation({.gate_up = gg, .activation = activation, .out = out});
      cpu().ops().gated_activation({.gate_up = gate_up, .activation = activation, .out = expected});
      // Of silu the GPU's own function: its rounding to bf16 may go the other way.
      CHECK(activation == Activation::kSilu ? relative_error(out.values(), expected.values()) < kTolerance
                                            : out.raw() == expected.raw());
    }
  }
}

std::unique_ptr<PackedLinear> pack(Ops& ops, const std::vector<Owned>& parts, const Owned* bias, bool gated) {
  LinearSpec spec{.name = "test", .in_features = parts[0].view().shape[1], .bias = bias != nullptr, .dtype = kB};
  for (size_t i = 0; i < parts.size(); ++i) spec.parts.push_back({concat("part", i), parts[i].view().shape[0]});
  spec.gated = gated;
  auto packer = ops.pack(spec);
  int64_t first = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const int64_t rows = parts[i].view().shape[0], half = rows / 2;
    packer->write_rows(static_cast<int>(i), half, parts[i].view().rows(half, rows - half));
    packer->write_rows(static_cast<int>(i), 0, parts[i].view().rows(0, half));
    if (bias != nullptr) {
      Tensor piece = bias->view();
      piece.data = bias->as<float>() + first;
      piece.shape[0] = rows;
      packer->write_bias(static_cast<int>(i), piece);
    }
    first += rows;
  }
  return packer->finish();
}

// 32 MB take the link a millisecond: what didn't wait for them would add what was there before.
TEST(work_launched_after_a_copy_ahead_sees_what_was_copied) {
  ON_GPU;
  constexpr int64_t kRows = 2048, kColumns = 4096;
  const int64_t bytes = kRows * kColumns * 4;
  const Buffer pinned = device.allocate_pinned(bytes, "test.pinned"), sum = device.allocate(bytes, "test.sum"),
               part = device.allocate(bytes, "test.part");
  auto* values = static_cast<float*>(pinned.data());
  std::vector<float> got(static_cast<size_t>(kRows * kColumns));
  float expected = 0;
  for (int round = 1; round <= 8; ++round) {
    std::fill_n(values, got.size(), static_cast<float>(round));
    device.copy_ahead(part.data(), pinned.data(), bytes);
    ops.add(make_tensor(sum.data(), kF, {kRows, kColumns}), make_tensor(part.data(), kF, {kRows, kColumns}));
    device.synchronize();
    expected += static_cast<float>(round);
    device.copy(got.data(), sum.data(), bytes);
    CHECK(std::all_of(got.begin(), got.end(), [&](float value) { return value == expected; }));
  }
}

TEST(linears_equal_the_cpus_and_themselves_whatever_the_number_of_rows) {
  ON_GPU;
  struct Shape {
    int64_t in, out;
    bool bias;
  };
  for (const Shape& shape :
       {Shape{64, 48, false}, {48, 80, true}, {256, 1008, true}, {1024, 512, false}, {896, 1152, true}}) {
    const std::vector<Owned> parts = {random_tensor(kB, {shape.out, shape.in}, fresh_seed(), 0.1f)};
    const Owned bias = random_tensor(kF, {shape.out}, fresh_seed());
    const auto weight = pack(ops, parts, shape.bias ? &bias : nullptr, false);
    const auto expected_weight = pack(cpu().ops(), parts, shape.bias ? &bias : nullptr, false);
    const int64_t most = 700;
    const Owned x = random_tensor(kB, {most, shape.in}, fresh_seed()),
                residual = random_tensor(kB, {most, shape.out}, fresh_seed());
    const Placed gx(device, x), gr(device, residual);
    const Placed all(device, shape_of(kB, {most, shape.out})), f32(device, shape_of(kF, {most, shape.out}));
    const Placed expected(cpu(), shape_of(kF, {most, shape.out}));
    ops.linear({.x = gx, .weight = weight.get(), .out = f32});
    cpu().ops().linear({.x = x, .weight = expected_weight.get(), .out = expected});
    CHECK(relative_error(f32.values(), expected.values()) < 1e-4);
    ops.linear({.x = gx, .weight = weight.get(), .out = all, .residual = gr});
    Owned residual_f32(kF, {most, shape.out});
    for (int64_t i = 0; i < residual.numel(); ++i) residual_f32.set(i, static_cast<float>(residual.at(i)));
    cpu().ops().linear({.x = x, .weight = expected_weight.get(), .out = expected, .residual = residual_f32});
    CHECK(relative_error(all.values(), expected.values()) < kTolerance);
    const std::vector<uint8_t> whole = all.raw();
    const int64_t row_bytes = shape.out * 2;
    for (int64_t rows : {1, 2, 5, 8, 9, 16, 17, 31, 32, 33, 48, 64, 65, 100, 128, 129, 257, 512}) {
      const int64_t first = (most - rows) / 3;
      const Placed some(device, shape_of(kB, {rows, shape.out}));
      ops.linear({.x = gx.view().rows(first, rows),
                  .weight = weight.get(),
                  .out = some,
                  .residual = gr.view().rows(first, rows)});
      const std::vector<uint8_t> part = some.raw();
      CHECK(std::memcmp(part.data(), whole.data() + first * row_bytes, part.size()) == 0);
    }
  }
}

TEST(a_gated_mlp_equals_the_cpus) {
  ON_GPU;
  for (int64_t hidden : {48, 512})
    for (int64_t rows : {1, 9, 64, 200}) {
      const int64_t inner = hidden * 3;
      const std::vector<Owned> gate_up = {random_tensor(kB, {inner, hidden}, fresh_seed(), 0.1f),
                                          random_tensor(kB, {inner, hidden}, fresh_seed(), 0.1f)};
      const std::vector<Owned> down = {random_tensor(kB, {hidden, inner}, fresh_seed(), 0.1f)};
      const Owned x = random_tensor(kB, {rows, hidden}, fresh_seed());
      const auto run = [&](Device& on, const Tensor& input, DType stream) {
        const auto first = pack(on.ops(), gate_up, nullptr, true), second = pack(on.ops(), down, nullptr, false);
        const Placed wide(on, shape_of(stream, {rows, 2 * inner})), inside(on, shape_of(kB, {rows, inner})),
            out(on, shape_of(stream, {rows, hidden}));
        on.ops().gated_mlp({.x = input,
                            .gate_up = first.get(),
                            .down = second.get(),
                            .gate_up_out = wide,
                            .activated = inside,
                            .out = out});
        return out.values();
      };
      const Placed gx(device, x);
      CHECK(relative_error(run(device, gx, kB), run(cpu(), x, kF)) < kTolerance);
    }
}

TEST(embeddings_are_the_tables_rows_and_slots_tokens) {
  ON_GPU;
  const std::vector<Owned> table = {random_tensor(kB, {101, 72}, fresh_seed())};
  const auto weight = pack(ops, table, nullptr, false);
  Side side(device, {}, kB, 64);
  side.set(3, 10);
  side.inputs->clear();
  const std::vector<int32_t> tokens = {5, 100, 0, 37};
  side.inputs->add(1, tokens, Form::kPrefill, 0);
  side.inputs->add(3, std::vector<int32_t>{kTokenFromSlot}, Form::kDecode, 10);
  side.inputs->upload();
  const Placed out(device, shape_of(kB, {5, 72}));
  ops.embedding({.tokens = side.inputs->tokens(), .table = weight.get(), .step = &side.step(), .out = out});
  const std::vector<float> values = out.values();
  const int32_t expected[] = {5, 100, 0, 37, 4};  // set() gives slot 3 the token 4
  for (int row = 0; row < 5; ++row)
    for (int i = 0; i < 72; ++i) CHECK_EQ(values[row * 72 + i], table[0].at(expected[row] * 72 + i));
}

// q, k, v of some runs through qkv_rope_store and attention on both sides; `as_one`: by rope_store_decode where a step
// has decode rows only.
struct AttentionRun {
  std::vector<float> q, pool, out;
  std::vector<uint8_t> out_raw;
};

AttentionRun attend(Device& on, const PoolShape& shape, int heads, const std::vector<std::vector<Run>>& steps,
                    const std::vector<Owned>& qkv, bool norms, const Owned& norm_weight, const Owned& inv_freq,
                    bool as_one = false) {
  const bool on_gpu = &on == gpu();
  int64_t most = 0;
  for (const Owned& one : qkv) most = std::max(most, one.view().shape[0]);
  Side side(on, shape, on_gpu ? kB : kF, most);
  AttentionRun result;
  for (size_t i = 0; i < steps.size(); ++i) {
    fill_step(side, steps[i]);
    const int64_t rows = qkv[i].view().shape[0], width = (heads + 2 * shape.kv_heads) * shape.head_dim;
    Owned copy(on_gpu ? kB : kF, {rows, width});
    for (int64_t k = 0; k < copy.numel(); ++k) copy.set(k, static_cast<float>(qkv[i].at(k)));
    const Placed x(on, copy), weight(on, norm_weight), frequencies(on, inv_freq),
        out(on, shape_of(on_gpu ? kB : kF, {rows, heads * shape.head_dim}));
    const QkvRopeStoreArgs rope{.qkv = x,
                                .num_heads = heads,
                                .num_kv_heads = shape.kv_heads,
                                .head_dim = shape.head_dim,
                                .q_norm = norms ? weight.view() : Tensor{},
                                .k_norm = norms ? weight.view() : Tensor{},
                                .inv_freq = frequencies,
                                .kv = side.kv,
                                .step = &side.step()};
    Tensor q = x.view().columns(0, heads * shape.head_dim);
    q.ndim = 3;
    q.shape = {rows, heads, shape.head_dim};
    q.stride = {width, shape.head_dim, 1};
    const Placed workspace(
        on, shape_of(DType::kU8, {on.ops().attention_workspace_bytes(most, heads, shape.kv_heads, shape.head_dim,
                                                                     shape.max_positions) +
                                  16}));
    const AttentionArgs args{.q = q,
                             .kv = side.kv,
                             .step = &side.step(),
                             .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                             .out = out,
                             .workspace = workspace};
    if (as_one && side.step().prefills.empty()) {
      on.ops().rope_store_decode(rope, args);
    } else {
      on.ops().qkv_rope_store(rope);
      if (!side.step().prefills.empty()) on.ops().paged_attention_prefill(args);
      if (!side.step().decodes.empty()) on.ops().paged_attention_decode(args);
    }
    const std::vector<float> values = out.values();
    result.out.insert(result.out.end(), values.begin(), values.end());
    const std::vector<uint8_t> raw = out.raw();
    result.out_raw.insert(result.out_raw.end(), raw.begin(), raw.end());
  }
  return result;
}

Owned frequencies_of(int head_dim) {
  Owned inv_freq(kF, {head_dim / 2});
  for (int i = 0; i < head_dim / 2; ++i) inv_freq.set(i, std::pow(10000.0f, -2.0f * i / head_dim));
  return inv_freq;
}

TEST(rope_store_and_attention_equal_the_cpus_in_both_forms) {
  ON_GPU;
  struct Case {
    int heads, kv_heads, head_dim, block_tokens;
  };
  for (const Case& one :
       {Case{4, 2, 16, 16}, {8, 2, 64, 16}, {4, 4, 64, 32}, {8, 2, 128, 64}, {32, 8, 128, 64}, {7, 1, 128, 16}}) {
    const PoolShape shape{.num_slots = 6,
                          .max_positions = 1024,
                          .block_tokens = one.block_tokens,
                          .kv_heads = one.kv_heads,
                          .head_dim = one.head_dim};
    // Prompts in chunks, then a decode of all beside one more prompt, of all alone, and of a run whose rows see one
    // another's K and V.
    const std::vector<std::vector<Run>> steps = {{{0, 130, 0}, {1, 1, 0}, {2, 63, 0}, {3, 257, 0}},
                                                 {{0, 300, 130}, {2, 65, 63}},
                                                 {{0, 1, 430, Form::kDecode},
                                                  {1, 1, 1, Form::kDecode},
                                                  {2, 1, 128, Form::kDecode},
                                                  {3, 1, 257, Form::kDecode},
                                                  {4, 40, 0}},
                                                 {{4, 1, 40, Form::kDecode},
                                                  {0, 1, 431, Form::kDecode},
                                                  {2, 1, 129, Form::kDecode},
                                                  {1, 1, 2, Form::kDecode},
                                                  {3, 1, 258, Form::kDecode}},
                                                 {{1, 1, 3, Form::kDecode}, {0, 3, 432, Form::kDecode}}};
    const int64_t width = (one.heads + 2 * one.kv_heads) * one.head_dim;
    std::vector<Owned> qkv;
    for (const auto& runs : steps) {
      int64_t rows = 0;
      for (const Run& run : runs) rows += run.rows;
      qkv.push_back(random_tensor(kB, {rows, width}, fresh_seed()));
    }
    const Owned weight = random_tensor(kF, {one.head_dim}, fresh_seed());
    for (bool norms : {true, false}) {
      const auto inv_freq = frequencies_of(one.head_dim);
      const AttentionRun ours = attend(device, shape, one.heads, steps, qkv, norms, weight, inv_freq);
      const AttentionRun theirs = attend(cpu(), shape, one.heads, steps, qkv, norms, weight, inv_freq);
      const double error = relative_error(ours.out, theirs.out);
      CHECK(error < kTolerance);
      if (!(error < kTolerance))
        std::cerr << "heads " << one.heads << "/" << one.kv_heads << " of " << one.head_dim << ": " << error << "\n";
      // The same steps with every decode row in prefill form, and chunks cut elsewhere: the same bits.
      std::vector<std::vector<Run>> other = steps;
      for (Run& run : other[2]) run.form = Form::kPrefill;
      CHECK(attend(device, shape, one.heads, other, qkv, norms, weight, inv_freq).out_raw == ours.out_raw);
      CHECK(attend(device, shape, one.heads, steps, qkv, norms, weight, inv_freq, true).out_raw == ours.out_raw);
    }
  }
}

// With a table, and in the linear's own kernel where that is faster: q and all of the pool.
TEST(q_k_and_v_of_many_rows_have_the_bits_of_linear_and_store_apart) {
  ON_GPU;
  struct Case {
    int heads, kv_heads, head_dim;
    int64_t hidden;
    std::vector<Run> runs;
  };
  for (const Case& one : {Case{32, 8, 128, 2048, {{0, 600, 0}, {1, 700, 10}, {2, 513, 0}, {3, 235, 100}}},
                          Case{14, 2, 64, 128, {{2, 257, 300}, {0, 1, 5}, {1, 130, 0}}},
                          Case{4, 4, 128, 192, {{1, 40, 3}, {0, 9, 0}}}, Case{4, 2, 16, 64, {{0, 300, 0}}}}) {
    const PoolShape shape{.num_slots = 4, .kv_heads = one.kv_heads, .head_dim = one.head_dim};
    int64_t rows = 0;
    for (const Run& run : one.runs) rows += run.rows;
    const int64_t width = (one.heads + 2 * one.kv_heads) * one.head_dim, q_width = one.heads * one.head_dim;
    const auto weight = pack(ops, {random_tensor(kB, {width, one.hidden}, fresh_seed(), 0.1f)}, nullptr, false);
    const Owned norm_weight = random_tensor(kF, {one.head_dim}, fresh_seed());
    const Placed x(device, random_tensor(kB, {rows, one.hidden}, fresh_seed())), norm(device, norm_weight),
        inv_freq(device, frequencies_of(one.head_dim));
    const auto run = [&](bool as_one) {
      Side side(device, shape, kB, rows);
      const std::vector<uint8_t> poison(static_cast<size_t>(side.kv.num_blocks * side.kv.block_stride), 0xff);
      device.copy(side.kv.base, poison.data(), static_cast<int64_t>(poison.size()));
      fill_step(side, one.runs);
      const Placed qkv(device, shape_of(kB, {rows, width})),
          table(device, shape_of(DType::kU8, {ops.rope_table_bytes(rows, one.head_dim) + 16}));
      QkvRopeStoreArgs rope{.qkv = qkv,
                            .num_heads = one.heads,
                            .num_kv_heads = one.kv_heads,
                            .head_dim = one.head_dim,
                            .q_norm = norm,
                            .k_norm = norm,
                            .inv_freq = inv_freq,
                            .kv = side.kv,
                            .step = &side.step()};
      const LinearArgs product{.x = x, .weight = weight.get(), .out = qkv};
      if (as_one) {
        rope.table = table;
        ops.rope_table({.inv_freq = inv_freq, .kv = side.kv, .step = &side.step(), .table = table});
        ops.linear_rope_store(product, rope);
      } else {
        ops.linear(product);
        ops.qkv_rope_store(rope);
      }
      const std::vector<uint8_t> raw = qkv.raw();
      std::vector<uint8_t> bits(poison.size());
      device.copy(bits.data(), side.kv.base, static_cast<int64_t>(bits.size()));
      for (int64_t row = 0; row < rows; ++row)
        bits.insert(bits.end(), raw.begin() + row * width * 2, raw.begin() + (row * width + q_width) * 2);
      return bits;
    };
    CHECK(run(true) == run(false));
  }
}

TEST(tokens_are_the_cpus) {
  ON_GPU;
  const int rows = 24;
  std::mt19937 random(fresh_seed());
  for (int64_t vocab : {101, 4096, 20011}) {
    PoolShape shape{.num_slots = rows};
    Side ours(device, shape, kB, rows, vocab), theirs(cpu(), shape, kF, rows, vocab);
    const Owned logits = random_tensor(kF, {rows, vocab}, fresh_seed(), 4.0f);
    for (int64_t i = 0; i < vocab; i += 7) logits.set(i, logits.at(0));  // ties, in row 0
    for (int64_t i : {vocab - 1, vocab / 2, int64_t{70}, int64_t{69}}) logits.set(3 * vocab + i, 50.0f);  // the highest
    for (int64_t i = 0; i < vocab; i += 2) logits.set(6 * vocab + i, NAN);
    for (int64_t i = 0; i < vocab; ++i) logits.set((rows - 1) * vocab + i, NAN);
    for (int64_t i = 0; i < vocab; ++i) logits.set((rows - 2) * vocab + i, i == vocab / 2 ? 1.0f : -INFINITY);
    std::vector<SamplingState> states;
    std::vector<TokenRules> rules(rows);
    for (int i = 0; i < rows; ++i) {
      SamplingState state{
          .temperature = i % 3 == 0 ? 0.0f : 0.3f + 0.1f * i, .seed = random(), .choice = 2, .num_logprobs = i % 6 - 1};
      if (i % 4 == 1) state.top_k = 1 + static_cast<int>(random() % 50);
      if (i % 4 == 2) state.top_p = 0.5f + 0.4f * (i / 30.0f);
      if (i % 5 == 1) state.min_p = 0.05f;
      if (i % 8 == 5) state.top_k = 40, state.top_p = 0.8f;
      if (i % 7 == 3) {
        state.suppress_until = 10;
        state.num_suppressed = 2;
        state.suppressed[0] = 3;
        state.suppressed[1] = 5;
      }
      if (i % 2 == 1) {
        state.has_token_words = 1;
        if (i % 3 != 1) {
          state.repetition_penalty = 0.7f + 0.05f * i;
          state.frequency_penalty = 0.1f * (i % 5) - 0.2f;
          state.presence_penalty = 0.3f;
          for (int k = 0; k < vocab / 2; ++k) {
            rules[i].prompt.push_back(static_cast<int32_t>(random() % vocab));
            rules[i].output.push_back(static_cast<int32_t>(random() % 60));
          }
        }
        for (int32_t id = static_cast<int32_t>(random() % 9); i % 4 == 1 && id < vocab && state.num_biases < 900;
             id += 1 + static_cast<int32_t>(random() % 20)) {
          rules[i].biases.push_back(id);
          rules[i].biases.push_back(std::bit_cast<int32_t>(static_cast<float>(random() % 90) / 7.0f - 6.0f));
          ++state.num_biases;
        }
        for (int64_t k = 0; i % 6 == 3 && k < vocab; ++k)
          rules[i].allowed.push_back(static_cast<int32_t>(random() % vocab));
      }
      states.push_back(state);
    }
    const auto run = [&](Side& side) {
      for (int i = 0; i < rows; ++i) side.set(i, 20, states[static_cast<size_t>(i)], 5, rules[static_cast<size_t>(i)]);
      side.inputs->clear();
      for (int i = 0; i < rows; ++i) {
        side.inputs->add(i, std::vector<int32_t>{1}, Form::kDecode, 20);
        side.inputs->sample();
      }
      side.inputs->upload();
      const Placed x(side.device, logits), tokens(side.device, shape_of(DType::kI32, {rows})),
          logprobs(side.device, shape_of(kF, {rows}));
      const Placed top(side.device, shape_of(DType::kI32, {rows, kMaxLogprobs})),
          values(side.device, shape_of(kF, {rows, kMaxLogprobs}));
      const Placed workspace(side.device, shape_of(DType::kU8, {side.ops().sample_workspace_bytes(rows, vocab)}));
      side.ops().sample({.logits = x,
                         .step = &side.step(),
                         .tokens = tokens,
                         .logprobs = logprobs,
                         .top_tokens = top,
                         .top_logprobs = values,
                         .workspace = workspace});
      std::vector<int32_t> last(static_cast<size_t>(rows)), position(static_cast<size_t>(rows));
      std::vector<std::vector<int32_t>> words(static_cast<size_t>(rows));  // of slots that have some
      side.device.synchronize();
      for (size_t i = 1; i < words.size(); i += 2) {
        words[i].resize(static_cast<size_t>(vocab));
        side.device.copy(words[i].data(), side.slots().token_words.rows(static_cast<int64_t>(i), 1).data, vocab * 4);
      }
      side.device.copy(last.data(), side.slots().last_token.data, rows * 4);
      side.device.copy(position.data(), side.slots().output_position.data, rows * 4);
      return std::tuple{tokens.values(), logprobs.values(), top.values(), values.values(), last, position, words};
    };
    const auto [tokens, logprobs, top, values, last, position, words] = run(ours);
    const auto [tokens2, logprobs2, top2, values2, last2, position2, words2] = run(theirs);
    CHECK(words == words2);  // the chosen tokens are counted
    for (int i = 0; i < rows; ++i) {
      CHECK_EQ(tokens[i], tokens2[i]);
      CHECK(std::fabs(logprobs[i] - logprobs2[i]) < 1e-4);
      CHECK_EQ(last[i], last2[i]);
      CHECK_EQ(position[i], position2[i]);
    }
    CHECK(top == top2);
    for (size_t i = 0; i < values.size(); ++i) CHECK(std::fabs(values[i] - values2[i]) < 1e-4);
  }
}

TEST(checksums_equal_the_cpus) {
  ON_GPU;
  const PoolShape shape{.num_slots = 2, .max_positions = 128, .block_tokens = 16, .kv_heads = 3, .head_dim = 64};
  Side ours(device, shape, kB, 1), theirs(cpu(), shape, kB, 1);
  const int64_t bytes = ours.kv.num_blocks * ours.kv.block_stride;
  const Owned content = random_tensor(kB, {bytes / 2}, fresh_seed());
  device.copy(ours.kv.base, content.view().data, bytes);
  cpu().copy(theirs.kv.base, content.view().data, bytes);
  for (int block = 0; block < 5; ++block)
    for (const auto& [first, tokens] : {std::pair{0, 16}, {3, 7}, {15, 1}, {0, 0}}) {
      ChecksumArgs args{.kv = ours.kv,
                        .group = 1,
                        .layer = 2,
                        .block = block,
                        .first_position = 1000 + block,
                        .first_token = first,
                        .tokens = tokens};
      const uint64_t sum = ops.checksum(args);
      args.kv = theirs.kv;
      CHECK_EQ(sum, cpu().ops().checksum(args));
    }
}

TEST(slots_advance_by_their_rows_and_fresh_blocks_are_zero) {
  ON_GPU;
  Side side(device, {}, kB, 32);
  fill_step(side, {{0, 5, 7}, {3, 1, 100, Form::kDecode}});
  ops.advance({.step = &side.step()});
  std::vector<int32_t> lens(9);
  device.synchronize();
  device.copy(lens.data(), side.slots().seq_len.data, 36);
  CHECK_EQ(lens[0], 12);
  CHECK_EQ(lens[3], 101);
  CHECK_EQ(lens[8], 0);
  const std::vector<uint8_t> ones(static_cast<size_t>(side.kv.num_blocks * side.kv.block_stride), 1);
  device.copy(side.kv.base, ones.data(), static_cast<int64_t>(ones.size()));
  side.inputs->clear();
  for (int32_t block : {0, 2, 511}) side.inputs->fresh(block);
  side.inputs->upload();
  side.inputs->apply(side.kv.base, side.kv.block_stride);
  device.synchronize();
  std::vector<uint8_t> after(ones.size());
  device.copy(after.data(), side.kv.base, static_cast<int64_t>(after.size()));
  for (int64_t block = 0; block < side.kv.num_blocks; ++block)
    for (int64_t at : {int64_t{0}, side.kv.block_stride / 2, side.kv.block_stride - 1})
      CHECK_EQ(int{after[static_cast<size_t>(block * side.kv.block_stride + at)]},
               block == 0 || block == 2 || block == 511 ? 0 : 1);
}

// qkv_rope_store reads slots before it waits for the kernel before it. Kernels before these take a while, so that all
// of them are there when the first ends.
class EarlyReader {
 public:
  static constexpr int kHeads = 4;
  static constexpr PoolShape kShape{.max_positions = 65536, .head_dim = 64};

  explicit EarlyReader(Device& device)
      : side(device, kShape, kB, 8),
        device_(device),
        qkv_(device, random_tensor(kB, {1, (kHeads + 2 * kShape.kv_heads) * kShape.head_dim}, fresh_seed())),
        inv_freq_(device, frequencies_of(kShape.head_dim)),
        blocks_(static_cast<size_t>(kShape.max_positions / kShape.block_tokens)) {
    device.copy(blocks_.data(), side.slots().block_tables.data, static_cast<int64_t>(blocks_.size()) * 4);
  }

  // A decode row of slot 0 at `position`, which has `seq_len` tokens as soon as the step is applied.
  void fill(int position, int seq_len) {
    side.inputs->clear();
    side.inputs->add(0, std::vector<int32_t>{1}, Form::kDecode, position);
    SlotUpdate& update = side.inputs->update(0);
    update.binds = 1;
    update.seq_len = seq_len;
  }
  void store() {
    device_.ops().qkv_rope_store({.qkv = qkv_,
                                  .num_heads = kHeads,
                                  .num_kv_heads = kShape.kv_heads,
                                  .head_dim = kShape.head_dim,
                                  .inv_freq = inv_freq_,
                                  .kv = side.kv,
                                  .step = &side.step()});
  }
  // K of head 0 at a position of slot 0.
  std::vector<uint8_t> stored(int position) {
    std::vector<uint8_t> key(static_cast<size_t>(side.kv.token_stride));
    device_.synchronize();
    device_.copy(key.data(), at(position), side.kv.token_stride);
    return key;
  }
  // What store() leaves at `position`, launched when all before it has ended. It is cleared again.
  std::vector<uint8_t> expected(int position) {
    fill(position, position);
    side.inputs->upload();
    side.inputs->apply(side.kv.base, side.kv.block_stride);
    device_.synchronize();
    store();
    const std::vector<uint8_t> key = stored(position);
    device_.zero(at(position), side.kv.token_stride);
    return key;
  }

  Side side;

 private:
  uint8_t* at(int position) const {
    return side.kv.base + blocks_[static_cast<size_t>(position / kShape.block_tokens)] * side.kv.block_stride +
           position % kShape.block_tokens * side.kv.token_stride;
  }

  Device& device_;
  Placed qkv_, inv_freq_;
  std::vector<int32_t> blocks_;
};

TEST(kernels_behind_update_slots_see_the_slots_it_writes) {
  ON_GPU;
  EarlyReader reader(device);
  for (int position = 1; position < 20'000; position += 777) {
    const std::vector<uint8_t> expected = reader.expected(position);
    reader.expected(0);  // leaves another length
    reader.fill(position, position);
    for (int32_t block = 0; block < reader.side.kv.num_blocks; ++block) reader.side.inputs->fresh(block);
    reader.side.inputs->upload();
    reader.side.inputs->apply(reader.side.kv.base, reader.side.kv.block_stride);
    reader.store();
    CHECK(reader.stored(position) == expected);
  }
}

TEST(a_step_sees_the_slots_that_the_step_before_it_moved) {
  ON_GPU;
  EarlyReader reader(device);
  const std::vector<Owned> rows = {random_tensor(kB, {16, 64}, fresh_seed())};
  const auto table = pack(ops, rows, nullptr, false);
  const Placed hidden(device, shape_of(kB, {1, 64})), sum(device, shape_of(kF, {2048, 4096})),
      part(device, shape_of(kF, {2048, 4096}));
  for (int position = 1; position < 20'000; position += 777) {
    const std::vector<uint8_t> expected = reader.expected(position);
    reader.fill(position, position - 1);
    reader.side.inputs->upload();
    reader.side.inputs->apply(reader.side.kv.base, reader.side.kv.block_stride);
    device.synchronize();
    ops.add(sum, part);
    ops.advance({.step = &reader.side.step()});
    ops.embedding(
        {.tokens = reader.side.inputs->tokens(), .table = table.get(), .step = &reader.side.step(), .out = hidden});
    reader.store();
    CHECK(reader.stored(position) == expected);
  }
}

}  // namespace
}  // namespace rtp_llm
